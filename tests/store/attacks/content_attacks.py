"""Shards whose structure is right, and whose content cannot be; hashes included."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from forge import HOOKS, Forge, attacks

from gradatoms_store.container import lay_out, structure_hash
from gradatoms_store.layout import expected_blocks
from gradatoms_store.schema import read_header


def _content(forge: Forge, name: str, index: int, value: Any) -> None:
    with forge.open() as file:
        file[name][index] = value


attacks(
    _content,
    content_offsets_falling=("examples/prompt/offsets", 1, 2**40),
    content_offsets_negative=("examples/prompt/offsets", 1, -(2**40)),
    content_offsets_beyond=("examples/prompt/offsets", -1, 2**62),
    content_offsets_short=("examples/prompt/offsets", -1, 1),
    content_offsets_start=("examples/prompt/offsets", 0, 3),
    content_text_not_utf8=("examples/prompt/data", 0, 0xFF),
    content_present_other=("examples/foil/present", 0, 7),
    content_id_negative=("examples/id", 0, -5),
    content_id_twice_in_shard=("examples/id", 0, 5),
    content_id_twice_in_store=("examples/id", 0, 0),
    content_example_elsewhere=("rows/example", 0, 2**62),
    content_norm_nan=("norms/" + HOOKS[0], 0, np.nan),
    content_norm_negative=("norms/" + HOOKS[0], 0, -1.0),
    content_norm_infinite=("norms/" + HOOKS[0], 0, np.inf),
    content_direction_nan=("gradients/" + HOOKS[0], 0, np.nan),
    content_meta_no_json=("examples/meta/data", 0, ord("[")),
)


def _sparse(forge: Forge, rows: int, segment_rows: int) -> None:
    """A shard of `rows` rows that takes no place on the disk; zeros are not what its hashes promise."""
    header = read_header(forge.store)
    texts = dict.fromkeys(("prompt", "target", "foil", "concept", "meta"), 0)
    blocks = expected_blocks(header, rows, 0, texts)
    layout = lay_out(blocks, {"format": np.bytes_("gradatoms-shard"), "schema_version": np.int64(2)})
    with open(forge.shard, "wb") as file:
        for start, part in layout.parts.items():
            file.seek(start)
            file.write(part)
        file.truncate(layout.size_bytes)
    data = json.loads(forge.sidecar.read_text())
    lengths = {name: math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for name, spec in blocks.items()}
    extents = [(start, lengths[name]) for name, start in layout.offsets.items() if start is not None]
    hashes = dict.fromkeys(data["segments"], "0" * 16 * -(-rows // segment_rows))
    structure = structure_hash(forge.shard, extents)
    stated = {"rows": rows, "examples": 0, "bytes": layout.size_bytes, "structure": structure}
    forge.edit(segment_rows=segment_rows, segments=hashes, **stated)


attacks(_sparse, sparse_terabyte=(2**34, 2**20), sparse_one_segment=(2**34, 2**34), sparse_gigabyte=(2**24, 8192))
