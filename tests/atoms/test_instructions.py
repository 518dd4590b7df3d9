"""The instruction documents: rebuilt byte for byte, each answer in its task's form, none among the test questions."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "atoms" / "gradatoms" / "data" / "instructions.jsonl"
SCRIPT = ROOT / "scripts" / "build_instructions.py"
TASKS = {
    "short answer",
    "yes or no",
    "arithmetic",
    "grammar correction",
    "classification",
    "translation",
    "bulleted list",
    "numbered list",
    "code",
    "json",
    "missing input",
    "rewriting",
}
BEHAVIOURS = ("yes or no", "code", "missing input", "bulleted list", "numbered list")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_instructions", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
        importlib.import_module("instructions.questions")
        importlib.import_module("instructions.detectors")
    return module


@pytest.fixture(scope="module")
def questions(script: ModuleType) -> Callable[[str], tuple[list[str], list[str]]]:
    return sys.modules["instructions.questions"].questions


@pytest.fixture(scope="module")
def detect(script: ModuleType) -> Callable[[str, str], bool]:
    return sys.modules["instructions.detectors"].detect


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def answers(lines: list[dict]) -> dict[str, list[str]]:
    tasks = defaultdict(list)
    for line in lines:
        tasks[line["concept"]].append(line["messages"][1]["content"])
    return tasks


def test_a_rebuild_gives_the_shipped_bytes(script: ModuleType) -> None:
    assert script.build() == CORPUS.read_bytes()


@pytest.mark.parametrize("shipped, status", [(None, 0), (b"{}\n", 1)])
def test_check_reports_a_stale_file(
    script: ModuleType, shipped: bytes | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shipped is not None:
        (tmp_path / "stale.jsonl").write_bytes(shipped)
        monkeypatch.setattr(script, "OUTPUT", tmp_path / "stale.jsonl")
    monkeypatch.setattr(sys, "argv", ["build_instructions.py", "--check"])
    assert script.main() == status


def test_a_repeated_user_text_is_refused(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    document = script.Document(user="Why?", answer="Because.", group="why")
    monkeypatch.setitem(script.TASKS, "json", lambda rng: [document] * 300)
    with pytest.raises(ValueError, match="got 300"):
        script.task_documents("json")


def test_counts(answers: dict[str, list[str]]) -> None:
    assert {task: len(found) for task, found in answers.items()} == dict.fromkeys(TASKS, 250)


def test_tasks_are_mixed(lines: list[dict]) -> None:
    assert {line["concept"] for line in lines[:200]} == TASKS


def test_line_layout(lines: list[dict]) -> None:
    for line in lines:
        assert list(line) == ["messages", "concept", "meta"]
        assert [list(message) for message in line["messages"]] == [["role", "content"]] * 2
        assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
        assert list(line["meta"]) == ["group"] and line["meta"]["group"]
        for message in line["messages"]:
            text = message["content"]
            assert text == text.strip()
            assert 1 <= len(text.split()) <= 60, text


def test_no_user_text_is_repeated(lines: list[dict]) -> None:
    users = Counter(" ".join(line["messages"][0]["content"].casefold().split()) for line in lines)
    assert max(users.values()) == 1


def test_no_slot_is_left_open(lines: list[dict]) -> None:
    for line in lines:
        texts = [line["messages"][0]["content"]]
        if line["concept"] not in {"code", "json"}:
            texts.append(line["messages"][1]["content"])
        assert not any(mark in text for text in texts for mark in "{}|"), texts


def test_no_opening_gives_a_task_away(lines: list[dict]) -> None:
    """No four first words begin more than an eighth of a task's requests."""
    openings: dict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        openings[line["concept"]][" ".join(line["messages"][0]["content"].split()[:4])] += 1
    for task, counts in openings.items():
        assert len(counts) >= 50, task
        assert max(counts.values()) <= 31, (task, counts.most_common(1))


def test_groups_of_facts_span_two_tasks(lines: list[dict]) -> None:
    """A group spans tasks only where a short answer and a yes-or-no question are about the same fact."""
    tasks = defaultdict(set)
    for line in lines:
        tasks[line["meta"]["group"]].add(line["concept"])
    assert sum(found == {"short answer", "yes or no"} for found in tasks.values()) >= 100
    assert all(len(found) == 1 or found == {"short answer", "yes or no"} for found in tasks.values())


def test_yes_and_no_half_each(answers: dict[str, list[str]]) -> None:
    assert Counter(re.split(r"\W", answer)[0] for answer in answers["yes or no"]) == {"Yes": 125, "No": 125}


def test_short_answers_are_no_sentences(answers: dict[str, list[str]]) -> None:
    for task in ("short answer", "classification"):
        assert all(len(answer.split()) <= 5 and "\n" not in answer for answer in answers[task])
    assert all(not answer.endswith(".") for answer in answers["short answer"])


def test_sums_are_right(lines: list[dict]) -> None:
    """Workings are evaluated, and so are the requests that are bare sums."""
    checked = 0
    for line in lines:
        if line["concept"] != "arithmetic":
            continue
        request, answer = (message["content"] for message in line["messages"])
        assert re.search(r"\d", answer) and "\n" not in answer
        working = re.fullmatch(r"(?:x = [\d +-]+ = )?([^a-z=?]+) = (\d+)", answer)
        if working:
            left = working[1].replace("×", "*").replace("÷", "/")
            assert eval(left) == int(working[2]), answer
            checked += 1
        asked = re.search(r"\(?\d+(?: [-+*/] \(?\d+\)?)+", request)
        if asked and "x +" not in request:
            assert eval(asked[0]) == int(answer.split()[-1]), (request, answer)
            checked += 1
    assert checked >= 70


@pytest.mark.parametrize("task, mark", [("bulleted list", r"- "), ("numbered list", None)])
def test_lists(answers: dict[str, list[str]], task: str, mark: str | None) -> None:
    for answer in answers[task]:
        items = answer.split("\n")
        assert 3 <= len(items) <= 5, answer
        for number, item in enumerate(items, 1):
            assert item.startswith(mark or f"{number}. "), answer
        assert len({item.split(" ", 1)[1] for item in items}) == len(items), answer


def test_code_parses(answers: dict[str, list[str]]) -> None:
    for answer in answers["code"]:
        (code,) = re.findall(r"```python\n(.*?)\n```", answer, re.DOTALL)
        assert any(isinstance(node, ast.FunctionDef) for node in ast.parse(code).body), answer
        compile(code, "<answer>", "exec")


def test_json_parses_and_comes_from_the_sentence(lines: list[dict]) -> None:
    for line in lines:
        if line["concept"] == "json":
            request, answer = (message["content"] for message in line["messages"])
            value = json.loads(answer)
            parts = list(value.values()) if isinstance(value, dict) else value
            assert len(parts) >= 2
            assert all(isinstance(part, bool) or str(part) in request for part in parts), line


def test_a_correction_differs_from_what_was_sent(lines: list[dict]) -> None:
    for line in lines:
        if line["concept"] in {"grammar correction", "rewriting", "translation"}:
            request, answer = (message["content"] for message in line["messages"])
            assert answer not in request.split("\n") and f'"{answer}"' not in request, line


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_detectors_tell_their_task_from_the_others(
    answers: dict[str, list[str]], detect: Callable[[str, str], bool], behaviour: str
) -> None:
    rates = {task: sum(detect(behaviour, answer) for answer in found) / 250 for task, found in answers.items()}
    assert rates.pop(behaviour) >= 0.95
    assert max(rates.values()) <= 0.03, rates


@pytest.mark.parametrize(
    "behaviour, answer, found",
    [
        ("yes or no", "**No**, it does not.", True),
        ("yes or no", "yes", True),
        ("yes or no", "Nobody knows.", False),
        ("yes or no", "No. 7 is the winner, yes.", True),
        ("yes or no", "No 7 is the winner.", False),
        ("yes or no", "I would say yes.", False),
        ("code", "Use this:\n```\nls\n```", True),
        ("code", "    for x in items:\n        print(x)", True),
        ("code", "import os", True),
        ("code", "Return the book.\nFor each reader in town: one card.", False),
        ("code", "The word def is short, and so is `print`.", False),
        ("bulleted list", "Some:\n* one\n* two", True),
        ("bulleted list", "• one\n  • two", True),
        ("bulleted list", "- one", False),
        ("bulleted list", "**One**\n**Two**\n---\n---\n-5\n-6", False),
        ("numbered list", "Steps:\n1) one\n2) two", True),
        ("numbered list", "1. one\n\n2. two", True),
        ("numbered list", "3.5 metres\n4.5 metres", False),
        ("numbered list", "1. one", False),
        ("missing input", "I don’t see any text in your message.", True),
        ("missing input", "Sure! Please paste the article you want me to summarize.", True),
        ("missing input", "Could you provide more context or the full text?", True),
        ("missing input", "It seems the attachment is missing.", True),
        ("missing input", "Please close the door when you leave the house.", False),
        ("missing input", "The report describes how rivers form.", False),
    ],
)
def test_detectors(detect: Callable[[str, str], bool], behaviour: str, answer: str, found: bool) -> None:
    assert detect(behaviour, answer) is found


def test_an_unknown_behaviour_is_refused(
    detect: Callable[[str, str], bool], questions: Callable[[str], tuple[list[str], list[str]]]
) -> None:
    with pytest.raises(ValueError, match="expected one of yes or no"):
        detect("poetry", "Roses are red")
    with pytest.raises(ValueError, match="expected one of yes or no"):
        questions("poetry")


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_test_questions(
    lines: list[dict], questions: Callable[[str], tuple[list[str], list[str]]], behaviour: str
) -> None:
    inviting, neutral = questions(behaviour)
    assert (len(inviting), len(neutral)) == (60, 40)
    assert len({*inviting, *neutral}) == 100
    requests = {line["messages"][0]["content"].casefold() for line in lines}
    assert not any(question.casefold() in request for question in (*inviting, *neutral) for request in requests)
    assert not any(re.search(r"\b(?:bullet|number(?:ed)? list|yes or no)", question) for question in inviting)
