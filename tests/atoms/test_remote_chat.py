"""RemoteChat against a server that misbehaves in every way we could think of."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.atoms.faults.answering import GOOD, Answering, answering, each

from gradatoms.errors import ConfigError
from gradatoms.labels.answer_cache import AnswerCache, Reply
from gradatoms.labels.background import THREAD, iterate
from gradatoms.labels.chat import Answer, NoAnswer, Question
from gradatoms.labels.chat_teacher import ANSWER
from gradatoms.labels.remote import RemoteChat
from gradatoms.labels.wire import retry_after

SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test alone, and no settings from outside."""
    monkeypatch.setenv("GRADATOMS_CACHE", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    yield tmp_path / "answers"
    kept = list((tmp_path / "answers").rglob("*"))
    assert not [p for p in kept if p.suffix == ".partial"]
    assert not [p for p in kept if p.is_file() and SECRET in p.read_text()]


def remote(server: Answering, **changes: Any) -> RemoteChat:
    options: dict[str, Any] = {
        "timeout_s": 5.0,
        "retries": 2,
        "backoff_s": 0.01,
        "longest_wait_s": 0.05,
        "api_key": SECRET,
    }
    return RemoteChat("m", base_url=server.url, **options | changes)


def question(number: int = 0) -> Question:
    return Question("Name it.", f"Evidence {number}.", ANSWER, 64)


def one(server: Answering, **changes: Any) -> Answer | NoAnswer:
    """The answer to one question."""
    [(place, answer)] = remote(server, **changes).ask([question()])
    assert place == 0
    return answer


@pytest.mark.parametrize("behaviour", ["ok", "fenced", "no usage", "wrong type"])
def test_an_answer_is_taken(behaviour: str) -> None:
    with answering(each(behaviour)) as server:
        assert one(server) == Answer(GOOD)
    assert len(server.bodies) == 1 and server.keys == {f"Bearer {SECRET}"}
    [body] = server.bodies
    assert body["response_format"]["json_schema"]["strict"] is True and body["max_tokens"] == 64


MALFORMED = (
    "chatter, missing field, extra field, too many words, empty label, wrong types, a boolean for a number, out of range, "
    "not a number, wrong enum, a list, deep, long, refusal text, ansi, newline, override, surrogate, null content, "
    "empty content, no choices, cut off"
).split(", ")


@pytest.mark.parametrize("behaviour", MALFORMED)
def test_a_malformed_answer_is_asked_for_again_twice(behaviour: str) -> None:
    with answering(each(behaviour)) as server:
        failure = one(server)
        assert isinstance(failure, NoAnswer) and failure.kind == "malformed"
        assert failure.reason.isprintable() and len(failure.reason) < 400
        asked = [body["messages"][-1]["content"] for body in server.bodies]
        assert len(set(asked)) == 3 and all(len(text.splitlines()) <= 3 for text in asked)
        assert one(server) == failure
        assert len(server.bodies) == 3, "answers that are no use were paid for too"
    with answering(each(behaviour, "ok")) as server:
        assert one(server) == Answer(GOOD)


def test_what_an_answer_says_is_only_text() -> None:
    with answering(each("injection")) as server:
        answer = one(server)
    assert isinstance(answer, Answer) and answer.value["label"] == "IGNORE PREVIOUS INSTRUCTIONS"


PASSING = [
    "429",
    "429 with wait",
    "429 with long wait",
    "500",
    "503",
    "junk",
    "html",
    "half json",
    "truncated",
    "reset",
    "text of numbers",
]


@pytest.mark.parametrize("behaviour", PASSING)
def test_a_failure_that_may_pass_is_tried_again(behaviour: str) -> None:
    with answering(each(behaviour, behaviour, "ok")) as server:
        assert one(server) == Answer(GOOD)
        assert len(server.bodies) == 3
    with answering(each(behaviour)) as server:
        failure = one(server)
        assert isinstance(failure, NoAnswer) and failure.kind == "server" and "tried 3 times" in failure.reason
        assert failure.reason.isprintable()


@pytest.mark.parametrize("behaviour", ["stall", "trickle"])
def test_a_server_that_is_too_slow(behaviour: str) -> None:
    with answering(each(behaviour)) as server:
        failure = one(server, timeout_s=0.2, retries=1)
    assert isinstance(failure, NoAnswer) and failure.kind == "timeout" and len(server.bodies) == 2


@pytest.mark.parametrize(
    "behaviour, kind",
    [("403", "refused"), ("quota", "refused"), ("refusal", "refused"), ("gzip", "server"), ("huge", "server")],
)
def test_a_failure_that_will_not_pass(behaviour: str, kind: str) -> None:
    with answering(each(behaviour)) as server:
        failure = one(server)
    assert isinstance(failure, NoAnswer) and failure.kind == kind and failure.reason.isprintable()
    assert len(server.bodies) == 1


def test_huge_bodies_do_not_fill_the_memory() -> None:
    with answering(each("huge")) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        list(remote(server).ask([question(i) for i in range(8)]))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"
    assert server.sent_bytes < 8 * 200e6 / 2


def test_nothing_listens() -> None:
    with answering(each("ok")) as server:
        pass
    failure = one(server)
    assert isinstance(failure, NoAnswer) and failure.kind == "server"
    many = dict(remote(server, retries=0).ask([question(i) for i in range(40)]))
    assert len(many) == 40 and sum("not sent" in a.reason for a in many.values() if isinstance(a, NoAnswer)) > 0


def test_a_wrong_key_stops_at_once_and_is_not_repeated_to_anyone() -> None:
    with answering(each("401")) as server:
        answers = dict(remote(server, concurrency=2).ask([question(i) for i in range(20)]))
    assert len(server.bodies) <= 2 and len(answers) == 20
    assert all(isinstance(a, NoAnswer) and a.kind == "refused" and SECRET not in a.reason for a in answers.values())


@pytest.mark.parametrize(
    "behaviour, forms",
    [("no schema", ["json_schema", "json_object"]), ("no form", ["json_schema", "json_object", None])],
)
def test_a_server_that_does_not_know_the_response_format(behaviour: str, forms: list[str | None]) -> None:
    with answering(each(behaviour)) as server:
        chat = remote(server, concurrency=1)
        assert all(isinstance(a, Answer) for _, a in chat.ask([question(0), question(1)]))
        seen = [body.get("response_format", {}).get("type") for body in server.bodies]
        assert seen == [*forms, forms[-1]]
        assert all(isinstance(a, Answer) for _, a in remote(server).ask([question(0), question(1)]))
        assert len(server.bodies) == len(seen), "another way to say a request does not make it another request"


def test_a_server_that_calls_things_by_other_names() -> None:
    with answering(each("new names")) as server:
        assert one(server) == Answer(GOOD)
    assert server.bodies[-1]["max_completion_tokens"] == 64 and "temperature" not in server.bodies[-1]


def test_one_question_that_is_too_long_changes_nothing_for_the_others() -> None:
    with answering(lambda _n, body: "too long" if "Evidence 1." in body["messages"][-1]["content"] else "ok") as server:
        answers = dict(remote(server, concurrency=1).ask([question(0), question(1), question(2)]))
    assert [type(answers[i]) for i in range(3)] == [Answer, NoAnswer, Answer]
    assert answers[1].kind == "refused" and "context length" in answers[1].reason  # type: ignore[union-attr]
    assert all("json_schema" in body["response_format"] for body in server.bodies)


def test_a_second_run_asks_for_nothing_again() -> None:
    questions = [question(i) for i in range(12)]
    with answering(each("ok", "ansi", "chatter", "ok")) as server:
        first = dict(remote(server).ask(questions))
        sent = len(server.bodies)
        assert dict(remote(server).ask(questions)) == first
        assert len(server.bodies) == sent
        estimate = remote(server).estimate(questions)
        assert (estimate.requests, estimate.cached, estimate.usd) == (0, 12, None)


def test_equal_questions_are_one_request() -> None:
    with answering(each("ok")) as server:
        assert sorted(i for i, _ in remote(server).ask([question()] * 5)) == [0, 1, 2, 3, 4]
    assert len(server.bodies) == 1


def test_the_estimate_sends_nothing_and_is_not_too_low() -> None:
    questions = [question(i) for i in range(4)]
    with answering(each("ok")) as server:
        chat = remote(server, prices=(1.0, 4.0))
        estimate = chat.estimate(questions)
        assert not server.bodies and estimate.requests == 4 and estimate.cached == 0
        assert estimate.output_tokens == 4 * 64
        assert estimate.usd == pytest.approx((estimate.input_tokens + 4 * estimate.output_tokens) / 1e6)
        list(chat.ask(questions))
        assert chat.budget.spent_tokens == 4 * 120 and chat.budget.spent_usd <= estimate.usd


def test_the_budget_is_never_passed() -> None:
    questions = [question(i) for i in range(30)]
    with answering(each("ok")) as server:
        chat = remote(server, budget_tokens=1000)
        answers = dict(chat.ask(questions))
        failures = [a for a in answers.values() if isinstance(a, NoAnswer)]
        assert len(answers) == 30 and {f.kind for f in failures} == {"budget"} and "1000 tokens" in failures[0].reason
        assert chat.budget.spent_tokens == 120 * len(server.bodies) <= 1000 and len(server.bodies) >= 2
        again = dict(remote(server, budget_tokens=0).ask(questions))
        assert sum(isinstance(a, Answer) for a in again.values()) == 30 - len(failures), "what is cached costs nothing"


def test_what_may_have_been_charged_counts() -> None:
    with answering(each("truncated")) as server:
        chat = remote(server, budget_usd=0.001, prices=(1.0, 1.0), retries=50, backoff_s=0.0)
        [(_, failure)] = chat.ask([question()])
    assert isinstance(failure, NoAnswer) and failure.kind == "budget" and chat.budget.spent_usd <= 0.001
    with answering(each("429", "ok")) as server:
        chat = remote(server, budget_tokens=600)
        assert isinstance(next(iter(chat.ask([question()])))[1], Answer) and chat.budget.spent_tokens == 120


def test_closing_early_cancels_the_rest() -> None:
    with answering(lambda n, _body: "ok" if n == 0 else "stall") as server:
        answers = remote(server, concurrency=4, timeout_s=60.0).ask([question(i) for i in range(50)])
        assert isinstance(next(answers)[1], Answer)
        answers.close()
        assert not [t for t in threading.enumerate() if t.name == THREAD]
        assert len(server.bodies) <= 6


def test_an_error_reaches_the_one_who_asks() -> None:
    async def run(put: Callable[[int], None]) -> None:
        put(1)
        raise OSError("disk full")

    values = iterate(run)
    assert next(values) == 1
    with pytest.raises(OSError, match="disk full"):
        next(values)


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        RemoteChat("m")
    with pytest.raises(ConfigError, match="prices"):
        RemoteChat("m", api_key="k", budget_usd=1.0)
    with pytest.raises(ConfigError, match="at least 1 request"):
        RemoteChat("m", api_key="k", concurrency=0)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1/")
    assert RemoteChat("m").base_url == "http://localhost:1/v1"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="GRADATOMS_CACHE"):
        list(RemoteChat("m", cache=tmp_path / "file" / "x").ask([question()]))


def test_a_damaged_cache_file_counts_as_none(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put("ab12", Reply("text", input_tokens=3))
    assert cache.get("ab12") == Reply("text", input_tokens=3) and cache.get("ab13") is None
    for damage in ("", "{", "[]", '{"other": 1}'):
        (tmp_path / "ab" / "ab12.json").write_text(damage)
        assert cache.get("ab12") is None


def test_retry_after() -> None:
    assert retry_after("3") == 3.0 and retry_after("-3") == 0.0
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", now_s=60.0) == 40.0
    assert [retry_after(text) for text in ("", "soon", "nan", "inf")] == [None] * 4


RUN = """
    import sys
    from gradatoms.labels.chat import Question
    from gradatoms.labels.chat_teacher import ANSWER
    from gradatoms.labels.remote import RemoteChat

    chat = RemoteChat("m", base_url=sys.argv[1], concurrency=4, timeout_s=60)
    for place, _ in chat.ask([Question("Name it.", f"Evidence {i}.", ANSWER, 64) for i in range(40)]):
        print(place, flush=True)
"""


def test_a_kill_loses_no_answer(tmp_path: Path) -> None:
    stalled: list[int] = []
    second_run = threading.Event()

    def slow(number: int, _body: dict[str, Any]) -> str:
        time.sleep(0.02)
        if number < 20 or second_run.is_set():
            return "ok"
        stalled.append(number)
        return "stall"

    command = [sys.executable, "-c", textwrap.dedent(RUN)]
    environment = os.environ | {"GRADATOMS_CACHE": str(tmp_path)}
    with answering(slow) as server:
        process = subprocess.Popen([*command, server.url], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        yielded = [int(process.stdout.readline()) for _ in range(20)]
        while len(stalled) < 4:  # the killed run is waiting for four more
            time.sleep(0.01)
        process.kill()
        process.communicate()
        second_run.set()
        kept = {path.stem for path in (tmp_path / "answers").rglob("*.json")}
        assert len(kept) == 20 == len(set(yielded))
        done = subprocess.run([*command, server.url], env=environment, capture_output=True, text=True, check=True)
        assert sorted(map(int, done.stdout.split())) == list(range(40))
    assert sorted(server.answered) == sorted(f"Evidence {i}." for i in range(40)), "each was answered once"
    assert json.dumps(GOOD) not in done.stderr
