"""JSON files that a reader must refuse, by name: one rule of `FORMAT.md` broken in each, all else made to fit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from gradatoms_store.testing.forge import write_json
from gradatoms_store.testing.json_rules import SIDECAR_KEYS, STORE_KEYS
from gradatoms_store.testing.samples import SAMPLE_HOOKS
from gradatoms_store.testing.tamper import (
    NARROW,
    SHARD,
    SIDECAR,
    WIDE,
    Damage,
    edited,
    symlinked,
    with_bytes,
    with_folder,
    with_text,
    with_value,
    without,
)


def _second_copy(path: Path) -> None:
    """A shard twice, under two numbers: its units and examples are in two shards."""
    shutil.copy(path / SHARD, path / "shards/00009.h5")
    data = json.loads((path / SIDECAR).read_text("utf-8"))
    write_json(path / "shards/00009.json", data | {"file": "00009.h5"})


def _nested(data: dict[str, Any]) -> None:
    data["norms"][WIDE]["quantiles"] = dict.fromkeys("abcde", 1.0)


def _other_order(data: dict[str, Any]) -> None:
    data["norms"] = dict(reversed(data["norms"].items()))


_HEADER_VALUES: dict[str, list[Any]] = {
    "format": ["gradatoms-shard", 2],
    "schema_version": [3, 0, "2", True, 2.0],
    "model": [[], {"a": 1.5}, {"a": None}, {"a": True}, {"a": {}}],
    "hooks": [[], {}, ["a"]],
    "objective": [3, None],
    "positions": [None],
    "dtype": ["float64", "int8", "<f2"],
    "space": ["time", ""],
    "plan": [5],
    "n_units": [-1, 1.5, "6", True],
    "n_examples": [-1, None],
    "seed": [-1, "5"],
}
_HOOK_VALUES: dict[str, list[Any]] = {
    "name": ["a/b", ".", "..", "", "a\0b", SAMPLE_HOOKS[0].name, 5],
    "hf_name": [None],
    "d": [0, -1, True, "1", 1.0],
}
_SIDECAR_VALUES: dict[str, list[Any]] = {
    "format": ["gradatoms-store"],
    "schema_version": [1, 3, True],
    "file": ["00000.h5", "../shards/00001.h5", "", None],
    "fingerprint": ["0" * 32, None],
    "rows": [9, 11, -1, "10", 10.0],
    "examples": [1, 3, -1],
    "bytes": [1, "1"],
    "units": [[2, 2], [5, 2], [8], [-1], [True], ["2"], [2.0], [0], 2, None],
    "blocks": [{}, []],
    "structure": ["0" * 32, None],
    "segment_rows": [0, -1, 3, "7", None],
    "segments": [{}, []],
    "norms": [{}, []],
    "nan_losses": [-1, "1", None],
    "concepts": [{"a": -1}, {"a": "1"}, {"a": None}, {"a": 1.5}, []],
    "example_offset": [-1, "0", 0.0],
}
_SUMMARY_VALUES: dict[str, list[Any]] = {
    "zeros": [-1, 0.5, None],
    "min": ["0", None, True],
    "max": ["0", None],
    "quantiles": [{}, [], {"0.5": 1.0}],
}


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)[:30]


HEADER_DAMAGES: dict[str, Damage] = {
    **{f"store.json: no {key}": without("store.json", key) for key in STORE_KEYS},
    **{
        f"store.json: {key} = {_shown(value)}": with_value("store.json", key, to=value)
        for key, values in _HEADER_VALUES.items()
        for value in values
    },
    **{
        f"store.json: {key} of a hook = {_shown(value)}": with_value("store.json", "hooks", 1, key, to=value)
        for key, values in _HOOK_VALUES.items()
        for value in values
    },
    **{f"store.json: hook without {key}": without("store.json", "hooks", 0, key) for key in _HOOK_VALUES},
    "store.json: unknown key": with_value("store.json", "more", to=1),
    "store.json: unknown key of a hook": with_value("store.json", "hooks", 0, "more", to=1),
    "store.json: other digest": edited("store.json", lambda data: data.update(digest="0" * 32), seal=False),
    "store.json: changed, digest as before": edited("store.json", lambda data: data.update(seed=6), seal=False),
    "store.json: NaN": with_value("store.json", "model", "a", to=float("nan")),
    "store.json: key twice": with_text("store.json", '"seed": 5', '"seed": 5, "seed": 5'),
    "store.json: key of the model twice": with_text("store.json", '"sha": "ab12"', '"sha": "ab13", "sha": "ab12"'),
    "store.json: more after the end": with_bytes("store.json", lambda text: text + b"{}"),
    "store.json: byte order mark": with_bytes("store.json", lambda text: b"\xef\xbb\xbf" + text),
    "store.json: UTF-16": with_bytes("store.json", lambda text: text.decode().encode("utf-16")),
    "store.json: not UTF-8": with_bytes("store.json", lambda text: text.replace("ü".encode(), b"\xfc")),
    "store.json: cut off": with_bytes("store.json", lambda text: text[:-2]),
    "store.json: empty": with_bytes("store.json", lambda text: b""),
    "store.json: a list": with_bytes("store.json", lambda text: b"[" + text + b"]"),
    "store.json: symbolic link": symlinked("store.json"),
    "store.json: a folder": with_folder("store.json"),
}
"""Damages of a store with shards, or of one without."""

SIDECAR_DAMAGES: dict[str, Damage] = {
    **{f"sidecar: no {key}": without(SIDECAR, key) for key in SIDECAR_KEYS},
    **{
        f"sidecar: {key} = {_shown(value)}": with_value(SIDECAR, key, to=value)
        for key, values in _SIDECAR_VALUES.items()
        for value in values
    },
    **{
        f"sidecar: {key} of norms = {_shown(value)}": with_value(SIDECAR, "norms", WIDE, key, to=value)
        for key, values in _SUMMARY_VALUES.items()
        for value in values
    },
    **{f"sidecar: norms without {key}": without(SIDECAR, "norms", WIDE, key) for key in _SUMMARY_VALUES},
    "sidecar: unknown key": with_value(SIDECAR, "more", to=1),
    "sidecar: unknown key of norms": with_value(SIDECAR, "norms", WIDE, "more", to=1),
    "sidecar: unknown quantile": with_value(SIDECAR, "norms", WIDE, "quantiles", "0.99", to=1.0),
    "sidecar: other quantiles": edited(SIDECAR, _nested),
    "sidecar: quantile missing": without(SIDECAR, "norms", WIDE, "quantiles", "0.5"),
    "sidecar: quantile no number": with_value(SIDECAR, "norms", WIDE, "quantiles", "0.5", to="1"),
    "sidecar: norms of an unknown hook": with_value(SIDECAR, "norms", "more", to={"zeros": 0}),
    "sidecar: norms of a hook missing": without(SIDECAR, "norms", NARROW),
    "sidecar: norms in another order": edited(SIDECAR, _other_order),
    "sidecar: unknown block": with_value(SIDECAR, "blocks", "rows/more", to="0" * 32),
    "sidecar: block missing": without(SIDECAR, "blocks", "rows/loss"),
    "sidecar: block no hash": with_value(SIDECAR, "blocks", "rows/loss", to=5),
    "sidecar: segments of an unknown block": with_value(SIDECAR, "segments", "examples/id", to="0" * 32),
    "sidecar: segments of a block missing": without(SIDECAR, "segments", "rows/loss"),
    "sidecar: a segment too few": with_value(SIDECAR, "segments", "rows/loss", to="0" * 16),
    "sidecar: a segment too many": with_value(SIDECAR, "segments", "rows/loss", to="0" * 48),
    "sidecar: other digest": edited(SIDECAR, lambda data: data.update(digest="0" * 32), seal=False),
    "sidecar: changed, digest as before": edited(SIDECAR, lambda data: data.update(nan_losses=0), seal=False),
    "sidecar: NaN": with_value(SIDECAR, "norms", WIDE, "min", to=float("nan")),
    "sidecar: Infinity": with_value(SIDECAR, "norms", WIDE, "max", to=float("inf")),
    "sidecar: key twice": with_text(SIDECAR, '"rows": 10', '"rows": 10, "rows": 10'),
    "sidecar: block twice": with_text(SIDECAR, '"rows/loss": "', '"rows/loss": "0", "rows/loss": "'),
    "sidecar: cut off": with_bytes(SIDECAR, lambda text: text[:-2]),
    "sidecar: empty": with_bytes(SIDECAR, lambda text: b""),
    "sidecar: not UTF-8": with_bytes(SIDECAR, lambda text: text.replace("Größe".encode(), b"Gr\xf6\xdfe")),
    "sidecar: symbolic link": symlinked(SIDECAR),
    "sidecar: named 1.json": lambda path: os.rename(path / SIDECAR, path / "shards/1.json"),
    "sidecar: named 000001.json": lambda path: os.rename(path / SIDECAR, path / "shards/000001.json"),
    "sidecar: named one.json": lambda path: os.rename(path / SIDECAR, path / "shards/one.json"),
    "two shards with one unit": _second_copy,
}

VERSION_1_DAMAGES: dict[str, Damage] = {
    "version 1: digest in store.json": with_value("store.json", "digest", to="0" * 32),
    "version 1: digest in a sidecar": with_value(SIDECAR, "digest", to="0" * 32),
    "version 1: example_offset": with_value(SIDECAR, "example_offset", to=0),
    "version 1: segments": with_value(SIDECAR, "segments", to={}),
    "version 1: sidecar of version 2": with_value(SIDECAR, "schema_version", to=2),
    "version 1: store.json of version 2": with_value("store.json", "schema_version", to=2),
    "version 1: unknown key": with_value(SIDECAR, "more", to=1),
    "version 1: missing key": without(SIDECAR, "units"),
}
