"""Making a store of a gradient index that bergson wrote (github.com/EleutherAI/bergson), read without bergson.

An index is a folder: `info.json` (grad_sizes, num_grads, base_dtype), `gradients.bin` (num_grads rows, the modules end
to end in the order of grad_sizes), `offsets.npy` where a row is a token and not a document, `data.hf` (the documents
as Arrow files), `config.yaml` (settings of the run) and `processor_config.yaml` (projection). This follows bergson
2.5.1.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from gradatoms_store.errors import StoreMismatchError, StoreValueError
from gradatoms_store.exchange.bergson_index import BergsonIndex, read_yaml
from gradatoms_store.exchange.common import Progress
from gradatoms_store.exchange.source import ExampleFile, RowSource, digest_arrays, write_store
from gradatoms_store.schema import ROW_FIELDS, ExampleRecord, GradientBlock, HookSpec

LOSSES = {"ce": "nll", "kl": "kl", "log_odds": "negative log-odds"}
"""bergson's name of a loss to the objective's."""

RUN_FIELDS = ("revision", "precision", "peft_init_kwargs", "optimizer_state", "loss_fn", "loss_reduction")
PROJECTION_FIELDS = ("projection_type", "projection_scale", "projection_seed", "projection_version")
"""Settings that go into the header's model as they are."""

_log = logging.getLogger(__name__)


def import_bergson(
    index: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    objective: str | None = None,
    model: Mapping[str, str | int] | None = None,
    prompt_column: str | None = None,
    target_column: str | None = None,
    examples: str | os.PathLike[str] | None = None,
    dtype: str = "float16",
    seed: int = 0,
    unit_rows: int | None = None,
    rows_per_shard: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> None:
    """Make a store of a bergson index.

    bergson keeps the gradient of the loss, as a store does, not its negative. Each module becomes a hook of space
    `weights` whose d is its gradient size: the gradient of the weight as (out, in), row by row, with the bias as one
    more column where the run included it; or a random projection of it. Modules are named relative to the model's
    `base_model`. A row is a document (positions `document`; position, token and target are -1), or with
    attribute_tokens that part of the document's gradient which flows through one position (positions `all`); the loss
    is the document's. Documents are numbered from 0. A document of fewer than 2 tokens has zero gradients.

    What makes rows other than gradients of the summed negative log-likelihood follows in parentheses in the header's
    objective, as in `nll (random projection per_module 16; unit-normalized)`: projections, optimizer normalizers,
    preconditioning, unit norms, means over tokens or documents, preprocessing that is not recorded. The header's model
    has the settings. After unit-normalization norms tell nothing but how a row divides between the hooks.

    Args:
        index: the index's folder, or those of its parts in order.
        out: folder of the store, `NAME.gstore`.
        objective: name of J; None takes it from `config.yaml`, without which it must be given.
        model: fields of the header's model that replace or extend those of `config.yaml`.
        prompt_column: column of `data.hf` that becomes the prompt; None takes it from `config.yaml`. bergson leaves
            texts out unless it runs with `drop_columns: false`; examples then have empty texts.
        target_column: the same for the target.
        examples: a file of one JSON object a line, as for `import_numpy`, in place of the texts of `data.hf`; its ids
            are the numbers of the documents.
        dtype: stored dtype of the directions.
        seed: seed of the order of rows within shards.
        unit_rows: rows of a work unit; None for about 32 MB of gradients. Memory holds one unit and one shard.
        rows_per_shard: rows of a shard; None as for `StoreWriter.create`.
        resume: go on with an import that was cut off; takes the same arguments and content.
        progress: called with `hash` and bytes, or `rows` and rows: done, and in all.

    Raises:
        StoreNotFoundError: there is no index, or the folder of `out` does not exist.
        StoreFormatError: a file of the index is damaged or foreign; names it.
        StoreValueError: the loss is not recorded and not given, the index is unfinished, a column is not there, NaN.
        StoreMismatchError: parts that differ; with `resume`, `out` is of another import.
        StoreExistsError: `out` exists.
        StoreError: pyarrow is missing, or the store could not be written; what was committed is intact.
    """
    paths = [Path(index)] if isinstance(index, str | os.PathLike) else [Path(path) for path in index]
    parts = [BergsonIndex.open(path) for path in paths]
    described = [_describe(part, objective) for part in parts]
    _check_alike(parts, described)
    columns = [_text_columns(part, prompt_column, target_column, examples is None) for part in parts]
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    starts = np.cumsum([0, *(len(part.offsets) - 1 for part in parts)]).tolist()
    texts = _example_file(Path(examples), counts) if examples is not None else None

    def read(which: slice, rows: slice) -> tuple[GradientBlock, list[ExampleRecord]]:
        blocks: list[GradientBlock] = []
        records: list[ExampleRecord] = []
        for part, names, (start, stop) in zip(parts, columns, pairwise(starts), strict=True):
            low, high = max(which.start, start) - start, min(which.stop, stop) - start
            if low < high:
                blocks.append(part.block(low, high, start))
                records += _records(part, names, low, high, start)
        return _join(blocks), [texts.record(record.id) for record in records] if texts else records

    name, fields = described[0]
    header: dict[str, Any] = {
        "model": {**fields, **(model or {})},
        "hooks": tuple(HookSpec(name=module, hf_name=module, d=size) for module, size in parts[0].sizes.items()),
        "objective": name,
        "positions": "all" if parts[0].per_token else "document",
        "space": "weights",
        "dtype": dtype,
        "seed": seed,
    }
    digest = digest_arrays(_content(parts), progress) + (texts.digest if texts else "")
    source = RowSource(counts=counts, ids_end=len(counts), digest=digest, read=read)
    write_store(
        source, out, header, unit_rows=unit_rows, rows_per_shard=rows_per_shard, resume=resume, progress=progress
    )


def _describe(part: BergsonIndex, objective: str | None) -> tuple[str, dict[str, str | int]]:
    """The header's objective and model of an index, from its settings."""
    config = read_yaml(part.path / "config.yaml")
    run, preprocess = _section(config, "index_cfg"), _section(config, "preprocess_cfg")
    processor = read_yaml(part.path / "processor_config.yaml")
    if not run and objective is None:
        message = f"{part.path}: expected a config.yaml that records the loss, found none"
        raise StoreValueError(f"{message}; state what the gradients are of with objective=")
    name = objective or LOSSES.get(str(run.get("loss_fn")), str(run.get("loss_fn")))
    changes = [*_changes_of_loss(part, run), *_changes_of_gradient(part, run, preprocess, processor)]
    fields: dict[str, str | int] = {
        "name": str(run.get("model", "unknown")),
        "source": "bergson",
        "base_dtype": part.dtype,
    }
    metadata = config.get("metadata")
    kept: dict[str, Any] = {key: run.get(key) for key in RUN_FIELDS}
    kept |= {"bergson_version": metadata.get("bergson_version") if isinstance(metadata, dict) else None}
    kept |= {"include_bias": "true" if processor.get("include_bias") else None}
    kept |= {key: processor.get(key) for key in PROJECTION_FIELDS if processor.get("projection_dim")}
    kept |= {"hessian_path": preprocess.get("hessian_path")}
    fields |= {
        key: value if type(value) is int else str(value) for key, value in kept.items() if value not in (None, "")
    }
    return f"{name} ({'; '.join(changes)})" if changes else name, fields


def _changes_of_loss(part: BergsonIndex, run: dict[str, Any]) -> list[str]:
    """How J differs from the loss summed over a document's tokens."""
    data = run.get("data")
    weighted = isinstance(data, dict) and any(data.get(key) for key in ("reward_column", "advantage_column"))
    weighted = weighted or (part.documents is not None and part.documents.has("advantage"))
    return [
        *(["mean over tokens"] if run.get("loss_reduction") == "mean" else []),
        *([f"label smoothing {run['label_smoothing']}"] if run.get("label_smoothing") else []),
        *([f"logits times {run['logit_scale']}"] if run.get("logit_scale", 1) != 1 else []),
        *(["weighted by advantage"] if weighted else []),
    ]


def _changes_of_gradient(
    part: BergsonIndex, run: dict[str, Any], preprocess: dict[str, Any], processor: dict[str, Any]
) -> list[str]:
    """What was done to the gradient of J, in bergson's order."""
    out = ["normalized by optimizer"] if part.has_optimizer_state() or run.get("optimizer_state") else []
    projection = processor or run
    if not projection:
        out.append("projection not recorded")
    elif projection.get("projection_dim"):
        target = projection.get("projection_target", "per_module")
        out.append(f"random projection {target} {projection['projection_dim']}")
    if not preprocess:
        return [*out, "preprocessing not recorded"]
    out += ["preconditioned"] if preprocess.get("hessian_path") else []
    out += ["unit-normalized"] if preprocess.get("unit_normalize") else []
    if (aggregation := preprocess.get("aggregation", "none")) != "none":
        out.append(f"{aggregation} over documents")
        out += ["minus contrast"] if (part.path / "contrast").is_dir() else []
        out += ["unit-normalized"] if preprocess.get("normalize_aggregated_grad") else []
    return out


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The first step's settings of this name, as bergson finds them; empty where there are none."""
    steps = config.get("steps")
    for step in steps if isinstance(steps, list) else []:
        for command in step.values() if isinstance(step, dict) else []:
            found = command.get(name) if isinstance(command, dict) else None
            if isinstance(found, dict):
                return found
    return {}


def _check_alike(parts: list[BergsonIndex], described: list[tuple[str, dict[str, str | int]]]) -> None:
    """Refuse parts that are not of one kind."""
    if not parts:
        raise StoreValueError("index expected one or more folders, got none; give the index's folder")
    for part, found in zip(parts, described, strict=True):
        here = (list(part.sizes.items()), part.per_token, *found)
        first = (list(parts[0].sizes.items()), parts[0].per_token, *described[0])
        for what, got, want in zip(
            ("grad_sizes", "attribute_tokens", "objective", "settings"), here, first, strict=True
        ):
            if got != want:
                message = f"{part.path}: {what} expected as in {parts[0].path}: {want!s:.200}, got {got!s:.200}"
                raise StoreMismatchError(f"{message}; import them into stores of their own")


def _text_columns(
    part: BergsonIndex, prompt: str | None, target: str | None, wanted: bool
) -> tuple[str | None, str | None]:
    """The columns of `data.hf` for prompt and target, each None where it is not there."""
    documents = part.documents
    for column in (prompt, target):
        if column is not None and (documents is None or not documents.has_text(column)):
            names = documents.names() if documents else []
            raise StoreValueError(
                f"{part.path}: expected a column of texts {column!r}, got {names}; choose one of them"
            )
    if documents is None or not wanted:
        return None, None
    data = _section(read_yaml(part.path / "config.yaml"), "index_cfg").get("data")
    data = data if isinstance(data, dict) else {}
    usual: list[Any] = [data.get("prompt_column") or "text", data.get("completion_column")]
    if data.get("format_template"):
        usual = ["prompt", "completion"] if documents.has("completion") else ["text", None]
    found = [str(name) if name and documents.has_text(str(name)) else None for name in usual]
    if prompt is None and found[0] is None:
        _log.warning("%s: data.hf has no texts in %r; examples get empty ones", part.path, usual[0])
    return prompt or found[0], target or found[1]


def _records(
    part: BergsonIndex, columns: tuple[str | None, str | None], low: int, high: int, start: int
) -> list[ExampleRecord]:
    """Documents low to high of an index as examples, of which document 0 has the id `start`."""
    documents = part.documents
    prompts, targets = (
        documents.column(name, low, high) if documents and name else [None] * (high - low) for name in columns
    )
    return [
        ExampleRecord(
            id=start + number,
            prompt=prompt or "",
            target=target or "",
            foil=None,
            concept=None,
            meta=json.dumps({"index": part.path.name, "document": number}),
        )
        for number, prompt, target in zip(range(low, high), prompts, targets, strict=True)
    ]


def _example_file(path: Path, counts: NDArray[int64]) -> ExampleFile:
    """The caller's file of examples, which must have the documents and no others."""
    file = ExampleFile(path)
    ids, _ = file.count_rows(np.arange(len(counts)), counts)
    if len(ids) != len(counts):
        message = f"{path}: expected a line for each of {len(counts)} documents, got {len(ids)}"
        raise StoreValueError(f"{message}; number them from 0 in the order of the index")
    return file


def _content(parts: list[BergsonIndex]) -> dict[str, NDArray[Any]]:
    """What the digest is taken of."""
    out: dict[str, NDArray[Any]] = {}
    for number, part in enumerate(parts):
        out |= {f"{number:05d} gradients": part.matrix, f"{number:05d} offsets": part.offsets}
        for file in part.documents.files if part.documents else []:
            out[f"{number:05d} {file.name}"] = np.memmap(file, np.uint8, "r")
    return out


def _join(blocks: list[GradientBlock]) -> GradientBlock:
    if len(blocks) == 1:
        return blocks[0]
    fields = {field: np.concatenate([getattr(block, field) for block in blocks]) for field in ROW_FIELDS}
    gradients = {name: np.concatenate([block.gradients[name] for block in blocks]) for name in blocks[0].gradients}
    return GradientBlock(gradients=gradients, **fields)
