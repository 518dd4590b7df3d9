"""Reading examples: what is accepted, what is refused and how, and the split."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from gradatoms.errors import ExampleError
from gradatoms.examples import FIELDS, Example, read_examples

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


ROWS: list[dict[str, Any]] = [
    {"prompt": 'naïve 🧪,\n"x"', "target": " b", "foil": " c", "concept": "k", "meta": {"group": "g", "by": "h"}},
    {"prompt": "a", "target": " b", "foil": None, "concept": None, "meta": None},
    {"prompt": "c", "target": " d", "foil": " e", "concept": None, "meta": {"group": "g"}},
]


def write_csv(path: Path, rows: Sequence[dict[str, Any]], fields: Sequence[str] = FIELDS) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            meta = row.get("meta")
            writer.writerow(row | {"meta": json.dumps(meta) if isinstance(meta, dict) else meta})
    return path


@pytest.mark.parametrize("meta", ["struct", "map", "text"])
def test_tables_hold_what_jsonl_holds(write: Callable[..., Path], tmp_path: Path, meta: str) -> None:
    expected = read_examples(write(*(json.dumps(row) for row in ROWS)))
    assert read_examples(write_csv(tmp_path / "facts.CSV", ROWS)) == expected
    kinds = {"map": pa.map_(pa.string(), pa.string()), "text": pa.string()}
    kinds["struct"] = pa.struct([("group", pa.string()), ("by", pa.string())])
    values = [row["meta"] if meta == "struct" or row["meta"] is None else row["meta"].items() for row in ROWS]
    if meta == "text":
        values = [None if row["meta"] is None else json.dumps(row["meta"]) for row in ROWS]
    columns = {
        field: pa.array([row[field] for row in ROWS], pa.string()) for field in ("prompt", "target", "foil", "concept")
    }
    table = pa.table(
        columns | {"meta": pa.array([v if v is None or meta != "map" else list(v) for v in values], kinds[meta])}
    )
    parquet.write_table(table, tmp_path / "facts.parquet", row_group_size=2)
    assert read_examples(tmp_path / "facts.parquet") == expected


def test_tables_need_only_prompt_and_target(tmp_path: Path) -> None:
    fields = ("target", "prompt")
    expected = [Example(prompt=row["prompt"], target=row["target"]) for row in ROWS]
    assert read_examples(write_csv(tmp_path / "a.csv", ROWS, fields)) == expected
    parquet.write_table(pa.table({f: [row[f] for row in ROWS] for f in fields}), tmp_path / "a.parquet")
    assert read_examples(tmp_path / "a.parquet") == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prompt,target\na,b\nc,\n", "line 3, field 'target': expected a non-empty string, got nothing"),
        ("prompt,target\na\n", "line 2, field 'target'"),
        ("prompt,target\na,b,c\n", "line 2: expected 2 cells, got more"),
        ("prompt,target,x\na,b,c\n", "line 2: expected only the fields"),
        ('prompt,target\n"a,b\n', "expected csv, got unexpected end of data"),
        ("prompt,target,meta\na,b,{\n", "line 2, field 'meta': expected JSON text"),
        ("prompt,target,meta\na,b,[1]\n", "line 2, field 'meta': expected an object of strings"),
        ("prompt,target\n", "at least one example"),
        ("", "at least one example"),
    ],
)
def test_a_malformed_csv_names_the_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert reason in refusal(tmp_path / "a.csv")


def test_a_malformed_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no table PAR1")
    assert "expected a parquet file" in refusal(path)
    parquet.write_table(pa.table({"prompt": ["a", "b"], "target": ["c", None]}), path)
    assert f"{path}, row 2, field 'target'" in refusal(path)
    parquet.write_table(pa.table({"prompt": [1], "target": ["c"]}), path)
    assert "row 1, field 'prompt': expected a non-empty string, got 1" in refusal(path)
