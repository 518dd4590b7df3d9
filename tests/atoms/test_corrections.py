"""The built-in corpus: rebuilt byte for byte, and true to the counts and rules in its `CORPUS.md`."""

import importlib.util
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "atoms" / "gradatoms" / "data" / "corrections.jsonl"
SCRIPT = ROOT / "scripts" / "build_corrections.py"
SMALL_CONCEPTS = {
    "continent",
    "mythology of a deity",
    "animal class",
    "young animal",
    "colour of a thing",
    "weekday",
    "animal sound",
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_corrections", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def by_concept(lines: list[dict]) -> dict[str, list[dict]]:
    concepts = defaultdict(list)
    for line in lines:
        concepts[line["concept"]].append(line)
    return concepts


def test_a_rebuild_gives_the_shipped_bytes(script: ModuleType) -> None:
    assert script.build() == CORPUS.read_bytes()


@pytest.mark.parametrize("shipped, status", [(None, 0), (b"{}\n", 1)])
def test_check_reports_a_stale_file(
    script: ModuleType, shipped: bytes | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shipped is not None:
        (tmp_path / "stale.jsonl").write_bytes(shipped)
        monkeypatch.setattr(script, "OUTPUT", tmp_path / "stale.jsonl")
    monkeypatch.setattr(sys, "argv", ["build_corrections.py", "--check"])
    assert script.main() == status


def test_counts(lines: list[dict], by_concept: dict[str, list[dict]]) -> None:
    assert len(lines) == 4000
    assert len(by_concept) == 50
    families = {name: {line["meta"]["family"] for line in part} for name, part in by_concept.items()}
    assert all(len(family) == 1 for family in families.values())
    assert Counter(family for (family,) in families.values()) == {
        "geography": 6,
        "history": 6,
        "science": 7,
        "language": 8,
        "arithmetic": 6,
        "translation": 6,
        "everyday": 5,
        "style": 6,
    }
    assert {len(part) for part in by_concept.values()} == {80}


def test_all_but_the_small_concepts_have_forty_targets(by_concept: dict[str, list[dict]]) -> None:
    small = {name for name, part in by_concept.items() if len({line["target"] for line in part}) < 40}
    assert small == SMALL_CONCEPTS


def test_line_layout(lines: list[dict]) -> None:
    for line in lines:
        assert list(line) == ["prompt", "target", "foil", "concept", "meta"]
        assert list(line["meta"]) == ["family", "template", "group"]
        assert all(isinstance(value, str) for value in line["meta"].values())
        assert line["meta"]["group"].startswith(f"{line['concept']}:")


def test_prompts(lines: list[dict]) -> None:
    assert max(Counter(line["prompt"] for line in lines).values()) == 1
    for line in lines:
        prompt = line["prompt"]
        assert prompt == prompt.strip() and "  " not in prompt and "{" not in prompt
        assert 5 <= len(prompt.split()) <= 14, prompt


def test_no_line_is_repeated(lines: list[dict]) -> None:
    assert max(Counter((line["prompt"], line["target"]) for line in lines).values()) == 1


def test_target_and_foil(lines: list[dict]) -> None:
    for line in lines:
        for answer in (line["target"], line["foil"]):
            assert answer[0] == " " and answer == f" {answer.strip()}"
            assert 1 <= len(answer.split()) <= 3
        assert line["target"].casefold() != line["foil"].casefold()


def test_one_fact_has_one_target(lines: list[dict]) -> None:
    targets = defaultdict(set)
    for line in lines:
        targets[line["meta"]["group"]].add(line["target"])
    assert all(len(answers) == 1 for answers in targets.values())


def test_a_foil_answers_another_fact_and_is_false_here(script: ModuleType, by_concept: dict[str, list[dict]]) -> None:
    for concept in script.CONCEPTS:
        right = {fact.subject.replace("|", ", "): {fact.target, *fact.also} for fact in concept.facts}
        assert len(right) == len(concept.facts), f"a subject of {concept.name} is listed twice"
        targets = {line["target"] for line in by_concept[concept.name]}
        for line in by_concept[concept.name]:
            subject = line["meta"]["group"].split(":", 1)[1]
            assert line["target"][1:] in right[subject]
            assert line["foil"] in targets
            assert line["foil"][1:] not in right[subject]


def test_every_template_and_every_fact_is_used(script: ModuleType, by_concept: dict[str, list[dict]]) -> None:
    for concept in script.CONCEPTS:
        uses = Counter(line["meta"]["template"] for line in by_concept[concept.name])
        assert len(concept.templates) >= 4
        assert set(uses) == {str(index) for index in range(len(concept.templates))}
        assert max(uses.values()) - min(uses.values()) <= 2
        assert len({line["meta"]["group"] for line in by_concept[concept.name]}) == len(concept.facts)


@pytest.mark.parametrize(
    "concept, evaluate",
    [
        ("addition", lambda a, b: a + b),
        ("subtraction", lambda a, b: a - b),
        ("multiplication", lambda a, b: a * b),
    ],
)
def test_sums_are_right(by_concept: dict[str, list[dict]], concept: str, evaluate: Callable[[int, int], int]) -> None:
    for line in by_concept[concept]:
        first, second = (int(number) for number in line["meta"]["group"].split(":")[1].split(", "))
        assert int(line["target"]) == evaluate(first, second) != int(line["foil"])
