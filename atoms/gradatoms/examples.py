"""Examples: what the model should have said where. One record type, and readers that name file, line and field."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import xxhash

from gradatoms.errors import ExampleError

FIELDS = ("prompt", "target", "foil", "concept", "meta")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt, the text that should follow it, and optionally a foil that should not.

    ``concept`` is ground truth for scoring only: no labeller and no projector reads it. ``meta["group"]``, where given,
    keeps examples of one fact on the same side of every split.
    """

    prompt: str
    target: str
    foil: str | None = None
    concept: str | None = None
    meta: dict[str, str] = field(default_factory=dict)

    def held_out(self, fraction: float, seed: int) -> bool:
        """Whether this example is on the held-out side of the split: a hash of its group (else its prompt), and ``seed``.

        The answer depends on nothing but the example, so every command draws the same line.
        """
        key = self.meta.get("group", self.prompt)
        return xxhash.xxh3_64_intdigest(key.encode(), seed) < fraction * 2.0**64


def read_examples(source: str | Path, *, limit: int | None = None) -> list[Example]:
    """Read examples from a file, or ``builtin:corrections``.

    Args:
        source: path of a jsonl file, one object a line with ``prompt``, ``target`` and optionally ``foil``, ``concept``
            and ``meta`` (an object of strings); of a ``.csv`` file with these columns, where an empty cell is none and
            ``meta`` is JSON text; of a ``.parquet`` file with them, ``meta`` a struct, a map or JSON text; or
            ``builtin:corrections``, the corpus that comes with the package.
        limit: keep this many examples, spread evenly over the file.

    Raises:
        ExampleError: no such source, nothing in it, or a malformed line (file, line and field are named).
    """
    shown, path = str(source), Path(source)
    if shown.startswith("builtin:"):
        found = parse_jsonl(_builtin(shown).split("\n"), shown)
    elif not path.is_file():
        raise ExampleError(
            f"expected a file of examples (jsonl, csv or parquet), found nothing at {path}; check the path, or use builtin:corrections"
        )
    elif path.suffix.lower() == ".csv":
        found = parse_csv(_read_text(path), shown)
    elif path.suffix.lower() == ".parquet":
        found = _read_parquet(path)
    else:
        found = parse_jsonl(_read_text(path).split("\n"), shown)
    examples = list(found)
    if not examples:
        raise ExampleError(
            f"expected at least one example in {shown}, found none; each line or row has a prompt and a target"
        )
    if limit is not None and limit < 1:
        raise ExampleError(f"expected a limit of at least 1, got {limit}")
    if limit is not None and limit < len(examples):
        examples = [examples[i * len(examples) // limit] for i in range(limit)]
    return examples


def parse_jsonl(lines: Iterable[str], source: str) -> Iterator[Example]:
    """Parse jsonl lines; blank lines are passed over. ``source`` is what errors call the file."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ExampleError(
                f"{where}: expected a JSON object, got malformed JSON ({error}); fix or remove the line"
            ) from error
        if not isinstance(record, dict):
            raise ExampleError(f"{where}: expected a JSON object, got {type(record).__name__}; fix or remove the line")
        yield example_from_record(record, where)


def parse_csv(text: str, source: str) -> Iterator[Example]:
    """Parse csv text whose first line names the columns. ``source`` is what errors call the file."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{source}, line {reader.line_num}"
            if None in row:
                raise ExampleError(
                    f"{where}: expected {len(row) - 1} cells, got more; quote cells that hold a comma or a line break"
                )
            yield _example_from_row({name: cell for name, cell in row.items() if cell}, where)
    except csv.Error as error:
        raise ExampleError(f"{source}, line {reader.line_num}: expected csv, got {error}; fix the line") from error


def _read_parquet(path: Path) -> Iterator[Example]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ExampleError(f"expected pyarrow to read {path}, found none; pip install pyarrow") from error
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield _example_from_row(row, f"{path}, row {number}")
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ExampleError(f"expected a parquet file, {path} failed with {reason}; check the file") from error


def _example_from_row(row: dict[str, Any], where: str) -> Example:
    """One checked example from a row of a table: its ``meta`` may be JSON text, or a struct with fields left out."""
    record, meta = dict(row), row.get("meta")
    if isinstance(meta, str):
        try:
            record["meta"] = json.loads(meta)
        except ValueError as error:
            raise ExampleError(
                f"{where}, field 'meta': expected JSON text, got malformed JSON ({error}); fix the cell"
            ) from error
    elif isinstance(meta, dict):
        record["meta"] = {key: value for key, value in meta.items() if value is not None}
    return example_from_record(record, where)


def example_from_record(record: dict[str, Any], where: str) -> Example:
    """One checked example from a decoded JSON object."""
    unknown = sorted(set(record) - set(FIELDS))
    if unknown:
        raise ExampleError(
            f"{where}: expected only the fields {', '.join(FIELDS)}, got also {', '.join(unknown)}; put extras in meta"
        )
    values: dict[str, Any] = {}
    for name in ("prompt", "target", "foil", "concept"):
        value = record.get(name)
        if value is None and name in ("foil", "concept"):
            continue
        if not isinstance(value, str) or not value:
            came = "nothing" if name not in record else repr(value)[:60]
            raise ExampleError(
                f"{where}, field {name!r}: expected a non-empty string, got {came}; fix or remove the line"
            )
        if not _is_utf8(value):
            raise ExampleError(f"{where}, field {name!r}: expected text, got a lone surrogate; fix or remove the line")
        values[name] = value
    meta = {} if record.get("meta") is None else record["meta"]
    if not isinstance(meta, dict) or not all(isinstance(v, str) for v in meta.values()):
        raise ExampleError(
            f"{where}, field 'meta': expected an object of strings, got {repr(meta)[:60]}; fix or remove the line"
        )
    return Example(**values, meta=meta)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _builtin(source: str) -> str:
    name = source.removeprefix("builtin:")
    if name != "corrections":
        raise ExampleError(f"expected a built-in corpus, got {source!r}; there is builtin:corrections")
    return (resources.files("gradatoms") / "data" / "corrections.jsonl").read_text(encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ExampleError(
            f"expected UTF-8 text in {path}, got other bytes at offset {error.start}; convert the file"
        ) from error
