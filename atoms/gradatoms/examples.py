"""Examples: what the model should have said where. One record type, and readers that name file, line and field."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from gradatoms.errors import ExampleError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELDS = ("prompt", "target", "foil", "concept", "meta", "span", "distribution", "messages")
BUILTIN = ("corrections", "instructions")
"""Corpora that come with the package."""
RESERVED = "gradatoms"
"""Key of ``meta`` under which a store keeps an example's span, distribution and loss."""

Ranges = tuple[tuple[int, int], ...]
Tokenizer = Callable[[], "PreTrainedTokenizerBase"]
"""Loads the model's tokenizer, when it is first needed."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt, the text that should follow it, and optionally a foil that should not.

    ``concept`` is ground truth for scoring only: no labeller and no projector reads it. ``meta["group"]``, where given,
    keeps examples of one fact on the same side of every split. With an empty prompt, ``target`` is a text in which
    every token is to be predicted from those before it.
    """

    prompt: str
    target: str
    foil: str | None = None
    concept: str | None = None
    meta: dict[str, str] = field(default_factory=dict)
    span: tuple[int, int] | None = None
    """Characters of prompt + target, from the first to behind the last, whose tokens' gradients are kept (positions ``span``)."""
    distribution: dict[str, float] | None = None
    """Texts of single tokens and their probability after the prompt, of sum 1 (objective ``kl``)."""
    loss: Ranges = ()
    """Characters of prompt + target whose tokens are to be predicted, such as the assistant's turns; all of the target's
    if empty."""

    def extras(self) -> dict[str, Any]:
        """What a store keeps of this example beside its texts and ``meta``, as JSON."""
        found = {"span": self.span, "distribution": self.distribution, "loss": self.loss or None}
        return {key: value for key, value in found.items() if value is not None}

    @classmethod
    def with_extras(cls, extras: dict[str, Any], **fields: Any) -> Example:
        """The example whose ``extras`` these are."""
        span, loss = extras.get("span"), extras.get("loss", ())
        return cls(
            **fields,
            span=None if span is None else (span[0], span[1]),
            distribution=extras.get("distribution"),
            loss=tuple((a, b) for a, b in loss),
        )

    def held_out(self, fraction: float, seed: int) -> bool:
        """Whether this example is on the held-out side of the split: a hash of its group (else its prompt), and ``seed``.

        The answer depends on nothing but the example, so every command draws the same line.
        """
        key = self.meta.get("group", self.prompt)
        return xxhash.xxh3_64_intdigest(key.encode(), seed) < fraction * 2.0**64


def read_examples(
    source: str | Path,
    *,
    limit: int | None = None,
    text: bool = False,
    window: int = 128,
    tokenizer: Tokenizer | None = None,
) -> list[Example]:
    """Read examples from a file, a data set, or a built-in corpus.

    Args:
        source: path of a jsonl file, one object a line with ``prompt``, ``target`` and optionally ``foil``, ``concept``,
            ``meta`` (an object of strings), ``span`` (a part of prompt + target, or two character numbers) and
            ``distribution`` (token texts to probabilities; ``target`` may then be left out), or with ``messages``, a chat
            of objects with ``role`` and ``content``; of a ``.csv`` file with these columns, where an empty cell is none and
            ``meta``, ``span``, ``distribution`` and ``messages`` are JSON text; of a ``.parquet`` file with them, or JSON
            text; ``hf:NAME[:split]``, a data set of the Hugging Face hub or a folder that ``datasets`` reads; or
            ``builtin:corrections`` or ``builtin:instructions`` (chats), the corpora that come with the package.
        limit: keep this many examples, spread evenly over the file.
        text: take plain text, every token of which is to be predicted: a file of text, or the field ``text`` of the others.
        window: tokens a piece into which a text is cut.
        tokenizer: gives the model's tokenizer, whose template renders chats and which cuts texts.

    Raises:
        ExampleError: no such source, nothing in it, or a malformed line (file, line and field are named).
    """
    shown, path = str(source), Path(source)
    if shown.startswith("builtin:"):
        rows: Iterable[tuple[dict[str, Any], str]] = _json_lines(_builtin(shown).split("\n"), shown)
    elif shown.startswith("hf:"):
        rows = _read_dataset(shown)
    elif not path.is_file():
        raise ExampleError(
            f"expected a file of examples (jsonl, csv or parquet), found nothing at {path}; check the path, or use builtin:corrections"
        )
    elif path.suffix.lower() == ".csv":
        rows = _csv_rows(_read_text(path), shown)
    elif path.suffix.lower() == ".parquet":
        rows = _parquet_rows(path)
    elif text and path.suffix.lower() not in (".jsonl", ".json", ".ndjson"):
        rows = [({"text": _read_text(path)}, shown)]
    else:
        rows = _json_lines(_read_text(path).split("\n"), shown)
    if text:
        texts = list(rows)
        examples: list[Example] = []
        for record, where in texts:
            examples += _pieces(record, where, window, _need(tokenizer, where), alone=len(texts) == 1)
    else:
        examples = [example_from_record(record, where, tokenizer) for record, where in rows]
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
    return (example_from_record(record, where) for record, where in _json_lines(lines, source))


def _json_lines(lines: Iterable[str], source: str) -> Iterator[tuple[dict[str, Any], str]]:
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
        yield record, where


def _csv_rows(text: str, source: str) -> Iterator[tuple[dict[str, Any], str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{source}, line {reader.line_num}"
            if None in row:
                raise ExampleError(
                    f"{where}: expected {len(row) - 1} cells, got more; quote cells that hold a comma or a line break"
                )
            yield _record_of_row({name: cell for name, cell in row.items() if cell}, where), where
    except csv.Error as error:
        raise ExampleError(f"{source}, line {reader.line_num}: expected csv, got {error}; fix the line") from error


def _parquet_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
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
                    where = f"{path}, row {number}"
                    yield _record_of_row(row, where), where
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ExampleError(f"expected a parquet file, {path} failed with {reason}; check the file") from error


def _read_dataset(source: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of ``hf:NAME[:split]``; columns that examples do not have are left out."""
    name, _, split = source.removeprefix("hf:").partition(":")
    try:
        import datasets
    except ImportError as error:
        raise ExampleError(f"expected datasets to read {source}, found none; pip install datasets") from error
    try:
        found = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # the loaders raise what their file readers do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExampleError(
            f"expected a data set {name!r} with a split {split or 'train'!r}, got: {reason}; check the name, or that there is a network"
        ) from error
    wanted = [column for column in found.column_names if column in (*FIELDS, "text")]
    for number, row in enumerate(found.select_columns(wanted), 1):
        where = f"{source}, row {number}"
        yield _record_of_row(row, where), where


def _record_of_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The JSON object that a row of a table stands for: nested fields may be JSON text, or structs with fields left out."""
    record = {name: cell for name, cell in row.items() if cell is not None}
    for name in ("meta", "distribution", "messages", "span"):
        value = record.get(name)
        if isinstance(value, str) and (name != "span" or value.lstrip().startswith("[")):
            try:
                record[name] = json.loads(value)
            except ValueError as error:
                raise ExampleError(
                    f"{where}, field {name!r}: expected JSON text, got malformed JSON ({error}); fix the cell"
                ) from error
        elif isinstance(value, dict):
            record[name] = {key: item for key, item in value.items() if item is not None}
    return record


def example_from_record(record: dict[str, Any], where: str, tokenizer: Tokenizer | None = None) -> Example:
    """One checked example from a decoded JSON object.

    Args:
        where: what errors call the object.
        tokenizer: gives the tokenizer whose template renders ``messages``.
    """
    unknown = sorted(set(record) - set(FIELDS))
    if unknown:
        raise ExampleError(
            f"{where}: expected only the fields {', '.join(FIELDS)}, got also {', '.join(unknown)}; put extras in meta"
        )
    distribution = _distribution(record.get("distribution"), where)
    if distribution is not None and record.get("target") is None:
        record = record | {"target": max(distribution, key=lambda text: distribution[text])}
    loss: Ranges = ()
    if record.get("messages") is not None:
        if record.get("prompt") is not None or record.get("target") is not None:
            raise ExampleError(f"{where}: expected messages, or prompt and target, got both; remove one of them")
        prompt, target, loss = render_chat(record["messages"], where, _need(tokenizer, where))
        record = record | {"prompt": prompt, "target": target}
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
    if RESERVED in meta:
        raise ExampleError(f"{where}, field 'meta': expected no key {RESERVED!r}, which is ours; rename it")
    span = _span(record.get("span"), values["prompt"] + values["target"], where)
    return Example(**values, meta=meta, span=span, distribution=distribution, loss=loss)


def _span(value: Any, text: str, where: str) -> tuple[int, int] | None:
    """Character range of a span given as such or as its text."""
    if value is None:
        return None
    if isinstance(value, str):
        n = text.count(value) if value else 0
        if n != 1:
            raise ExampleError(
                f"{where}, field 'span': expected a part of prompt + target that is there once, {value[:40]!r} is there {n} times; "
                "give its first character's number and the one behind its last"
            )
        start = text.index(value)
        return start, start + len(value)
    numbers = isinstance(value, list | tuple) and len(value) == 2 and all(type(x) is int for x in value)
    if not numbers or not 0 <= value[0] < value[1] <= len(text):
        raise ExampleError(
            f"{where}, field 'span': expected text, or two character numbers within the {len(text)} of prompt + target, got "
            f"{repr(value)[:40]}; correct it"
        )
    return value[0], value[1]


def _distribution(value: Any, where: str) -> dict[str, float] | None:
    if value is None:
        return None
    good = isinstance(value, dict) and value and all(type(p) in (int, float) and 0 <= p <= 1 for p in value.values())
    if not good or not all(value) or not abs(sum(value.values()) - 1) < 1e-3:
        raise ExampleError(
            f"{where}, field 'distribution': expected token texts with probabilities of sum 1, got {repr(value)[:60]}; correct it"
        )
    return {str(text): float(p) for text, p in value.items()}


def _need(tokenizer: Tokenizer | None, where: str) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise ExampleError(
            f"{where}: expected a tokenizer to read chats and texts with, got none; read_examples(…, tokenizer=…)"
        )
    return tokenizer()


def render_chat(messages: Any, where: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, Ranges]:
    """A chat through the tokenizer's template.

    Returns:
        the text up to the first turn of the assistant, the rest, and the characters of each such turn (with the mark
        that ends it) in the two together: there the loss is taken, nowhere else.
    """
    turns = isinstance(messages, list | tuple) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not turns or not any(m["role"] == "assistant" for m in messages):
        raise ExampleError(
            f"{where}, field 'messages': expected a list of objects with role and content, one of them the assistant's, got "
            f"{repr(messages)[:60]}; fix or remove the line"
        )
    if tokenizer.chat_template is None:
        raise ExampleError(
            f"{where}: expected a tokenizer with a chat template, this one has none; give prompt and target"
        )
    chat = [dict(m) for m in messages]
    last = max(i for i, m in enumerate(chat) if m["role"] == "assistant")
    whole = _rendered(tokenizer, chat[: last + 1], where)
    ranges = []
    for i, message in enumerate(chat[: last + 1]):
        if message["role"] != "assistant":
            continue
        before = _rendered(tokenizer, chat[:i], where, add_generation_prompt=True)
        through = whole if i == last else _rendered(tokenizer, chat[: i + 1], where)
        if not whole.startswith(before) or not whole.startswith(through):
            raise ExampleError(
                f"{where}: expected a template that renders a turn the same whatever follows, this one changes turn {i + 1}; give "
                "prompt and target, or a chat with one turn of the assistant"
            )
        ranges.append((len(before), len(through)))
    start = str(getattr(tokenizer, "bos_token", None) or "")
    cut = (
        len(start) if start and whole.startswith(start) and _adds(tokenizer, start) else 0
    )  # it would stand there twice
    first = ranges[0][0]
    return whole[cut:first], whole[first:], tuple((a - cut, b - cut) for a, b in ranges)


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]], where: str, **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **options))
    except Exception as error:  # a template may raise whatever it likes
        raise ExampleError(
            f"{where}: expected a chat that the tokenizer's template takes, it says {str(error).splitlines()[0][:100]}; fix the turns"
        ) from error


def _adds(tokenizer: PreTrainedTokenizerBase, start: str) -> bool:
    """Whether the tokenizer puts its start mark before every text."""
    ids = tokenizer("a").input_ids
    return bool(ids) and ids[0] == tokenizer.convert_tokens_to_ids(start)


def _pieces(
    record: dict[str, Any], where: str, window: int, tokenizer: PreTrainedTokenizerBase, *, alone: bool
) -> Iterator[Example]:
    """A text in pieces of ``window`` tokens, the last one longer by one rather than one alone, which predicts nothing.

    Args:
        alone: it is the only text, so that its pieces may be divided between fit and evaluation.
    """
    text = record.get("text")
    if not isinstance(text, str) or not text or not _is_utf8(text):
        came = "nothing" if "text" not in record else repr(text)[:60]
        raise ExampleError(f"{where}, field 'text': expected a non-empty string, got {came}; fix or remove the line")
    if window < 2:
        raise ExampleError(f"expected a window of at least 2 tokens, got {window}")
    if not tokenizer.is_fast:
        raise ExampleError(
            f"expected a tokenizer that knows where its tokens are in the text, {type(tokenizer).__name__} does not; use its "
            "fast version"
        )
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    for number, low in enumerate(range(0, max(1, len(places) - 1), window)):
        end = places[low + window][0] if low + window < len(places) - 1 else len(text)
        piece = text[places[low][0] if low else 0 : end]
        if piece:
            group = f"{where}, piece {number + 1}" if alone else where
            yield Example(prompt="", target=piece, meta={"group": group})


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _builtin(source: str) -> str:
    name = source.removeprefix("builtin:")
    if name not in BUILTIN:
        there = ", ".join(f"builtin:{known}" for known in BUILTIN)
        raise ExampleError(f"expected a built-in corpus, got {source!r}; there is {there}")
    return (resources.files("gradatoms") / "data" / f"{name}.jsonl").read_text(encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ExampleError(
            f"expected UTF-8 text in {path}, got other bytes at offset {error.start}; convert the file"
        ) from error
