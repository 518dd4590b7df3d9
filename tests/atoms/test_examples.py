"""Reading examples: what is accepted, what is refused and how, and the split."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradatoms.errors import ExampleError
from gradatoms.examples import Example, read_examples

GOOD = '{"prompt": "a", "target": " b"}'


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write lines to a jsonl file and return its path."""

    def make(*lines: str) -> Path:
        path = tmp_path / "facts.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return make


def refusal(path: Path | str, limit: int | None = None) -> str:
    with pytest.raises(ExampleError) as error:
        read_examples(path, limit=limit)
    text = str(error.value)
    assert text and "\n" not in text
    return text


def test_every_field_is_read_and_blank_lines_are_passed_over(write: Callable[..., Path]) -> None:
    full = {"prompt": "naïve 🧪", "target": " b", "foil": " c", "concept": "k", "meta": {"group": "g"}}
    path = write("", json.dumps(full, ensure_ascii=False), "   ", '{"prompt": "a", "target": " b", "foil": null}')
    assert read_examples(path) == [
        Example(prompt="naïve 🧪", target=" b", foil=" c", concept="k", meta={"group": "g"}),
        Example(prompt="a", target=" b"),
    ]
    assert read_examples(str(path)) == read_examples(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x7f", "\\n", "\\u001c"])
def test_only_a_line_feed_ends_a_line(write: Callable[..., Path], separator: str) -> None:
    path = write(f'{{"prompt": "a{separator}b", "target": " c"}}', GOOD)
    assert [e.target for e in read_examples(path)] == [" c", " b"]


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(f"{GOOD}\r\n\r\n{GOOD}\r\n".encode())
    assert read_examples(path) == [Example(prompt="a", target=" b")] * 2


@pytest.mark.parametrize(
    "line, field",
    [
        ('{"target": " b"}', "prompt"),
        ('{"prompt": "a"}', "target"),
        ('{"prompt": "", "target": " b"}', "prompt"),
        ('{"prompt": 7, "target": " b"}', "prompt"),
        ('{"prompt": "a", "target": null}', "target"),
        ('{"prompt": "a", "target": ["b"]}', "target"),
        ('{"prompt": "a", "target": " b", "foil": 3}', "foil"),
        ('{"prompt": "a", "target": " b", "concept": {}}', "concept"),
        ('{"prompt": "a", "target": " b", "meta": "x"}', "meta"),
        ('{"prompt": "a", "target": " b", "meta": {"n": 1}}', "meta"),
        ('{"prompt": "a", "target": " b", "meta": []}', "meta"),
        ('{"prompt": "a", "target": " b", "label": "x"}', "label"),
    ],
)
def test_a_wrong_field_names_file_line_and_field(write: Callable[..., Path], line: str, field: str) -> None:
    path = write(GOOD, "", line, GOOD)
    text = refusal(path)
    assert f"{path}, line 3" in text and field in text


@pytest.mark.parametrize("line", ["{", '"text"', "[]", '{"prompt": "a", "target": " b"} trailing', "NaN"])
def test_a_line_that_is_no_object_names_file_and_line(write: Callable[..., Path], line: str) -> None:
    path = write(GOOD, line)
    text = refusal(path)
    assert f"{path}, line 2" in text and "expected a JSON object" in text


def test_half_a_surrogate_pair_is_refused(write: Callable[..., Path]) -> None:
    assert "line 2" in refusal(write(GOOD, r'{"prompt": "\ud83e", "target": " b"}'))


@pytest.mark.parametrize("lines", [(), ("", "  ")])
def test_nothing_in_the_file(write: Callable[..., Path], lines: tuple[str, ...]) -> None:
    path = write(*lines)
    assert f"expected at least one example in {path}" in refusal(path)


def test_no_such_source(tmp_path: Path) -> None:
    assert str(tmp_path / "none.jsonl") in refusal(tmp_path / "none.jsonl")
    assert "found nothing" in refusal(tmp_path)
    assert "builtin:corrections" in refusal("builtin:nothing")


def test_other_bytes_than_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "naïve", "target": " b"}'.encode("latin-1"))
    text = refusal(path)
    assert str(path) in text and "UTF-8" in text and "offset 14" in text


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 11])
def test_a_limit_spreads_evenly(write: Callable[..., Path], limit: int) -> None:
    path = write(*(json.dumps({"prompt": str(i), "target": " b"}) for i in range(10)))
    kept = [int(e.prompt) for e in read_examples(path, limit=limit)]
    assert len(kept) == min(limit, 10) and kept[0] == 0 and kept == sorted(set(kept))
    gaps = {b - a for a, b in itertools.pairwise(kept)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert 10 - kept[-1] <= max(gaps, default=10) + 1


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(write: Callable[..., Path], limit: int) -> None:
    assert "limit" in refusal(write(GOOD), limit)


def test_the_built_in_corpus_is_read() -> None:
    examples = read_examples("builtin:corrections", limit=50)
    assert len(examples) == 50 and len({e.concept for e in examples}) > 10


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_the_held_out_share_is_near_its_fraction(fraction: float) -> None:
    examples = [Example(prompt=f"prompt {i}", target=" b") for i in range(4000)]
    sides = [e.held_out(fraction, seed=0) for e in examples]
    assert sum(sides) / len(sides) == pytest.approx(fraction, abs=0.03)
    assert sides == [e.held_out(fraction, seed=0) for e in examples]
    assert sides != [e.held_out(fraction, seed=1) for e in examples]


def test_the_ends_of_the_fraction() -> None:
    examples = [Example(prompt=str(i), target=" b") for i in range(100)]
    assert not any(e.held_out(0.0, 0) for e in examples)
    assert all(e.held_out(1.0, 0) for e in examples)


def test_a_group_stays_on_one_side() -> None:
    for group in map(str, range(50)):
        sides = {Example(prompt=f"p{i}", target=f" t{i}", meta={"group": group}).held_out(0.5, 3) for i in range(20)}
        assert len(sides) == 1
    prompts = {Example(prompt="same", target=f" t{i}").held_out(0.5, 3) for i in range(20)}
    assert len(prompts) == 1
