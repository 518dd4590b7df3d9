"""The rules of `FORMAT.md` on `store.json` and the sidecars, checked with json and xxhash alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradatoms_store.testing.plain import QUANTILES, digest, fingerprint
from gradatoms_store.testing.samples import OPTIONAL, ROW_DTYPES, TEXTS
from gradatoms_store.testing.suite import RuleBrokenError, demand

STORE_KEYS = (
    "format schema_version model hooks objective positions dtype space plan n_units n_examples seed digest".split()
)
SIDECAR_KEYS = (
    "format schema_version file fingerprint rows examples bytes units blocks structure segment_rows segments "
    "norms nan_losses concepts example_offset digest".split()
)
NEW_IN_2 = ("digest", "structure", "segment_rows", "segments", "nan_losses", "example_offset")
VERSIONS = (1, 2)


def check_header(file: Path) -> dict[str, Any]:
    """Check `store.json` by itself; its content.

    Raises:
        RuleBrokenError: a rule is broken.
    """
    data = read_object(file)
    _check_version(file, data, "gradatoms-store")
    _check_keys(file, data, STORE_KEYS if data["schema_version"] > 1 else _old(STORE_KEYS))
    for key in ("objective", "positions", "dtype", "space", "plan"):
        demand(isinstance(data[key], str) and data[key] != "", f"{file}: {key} is a string")
    demand(data["dtype"] in ("float16", "bfloat16", "float32"), f"{file}: dtype is one of three")
    demand(data["space"] in ("activation", "weights"), f"{file}: space is one of two")
    for key in ("n_units", "n_examples", "seed"):
        demand(_is_integer(data[key]), f"{file}: {key} is an integer of 0 or more")
    demand(isinstance(data["model"], dict), f"{file}: model is an object")
    for value in data["model"].values():
        demand(type(value) in (str, int), f"{file}: model holds strings and integers")
    demand(isinstance(data["hooks"], list) and len(data["hooks"]) > 0, f"{file}: hooks is a list of at least one")
    for hook in data["hooks"]:
        demand(isinstance(hook, dict), f"{file}: a hook is an object")
        _check_keys(file, hook, ("name", "hf_name", "d"))
        name = hook["name"]
        demand(isinstance(name, str) and isinstance(hook["hf_name"], str), f"{file}: names of hooks are strings")
        demand(name not in ("", ".", "..") and not set(name) & {"/", "\0"}, f"{file}: {name!r} can be a name")
        demand(_is_integer(hook["d"], 1), f"{file}: d is an integer of 1 or more")
    names = [hook["name"] for hook in data["hooks"]]
    demand(len(set(names)) == len(names), f"{file}: names of hooks are distinct")
    _check_digest(file, data)
    return data


def check_sidecar(file: Path, header: dict[str, Any]) -> dict[str, Any]:
    """Check a sidecar against its name and its store's header, without a look at the shard; its content.

    Raises:
        RuleBrokenError: a rule is broken.
    """
    data = read_object(file)
    _check_version(file, data, "gradatoms-shard")
    version = data["schema_version"]
    demand(version == header["schema_version"], f"{file}: schema_version is that of the store")
    _check_keys(file, data, SIDECAR_KEYS if version > 1 else _old(SIDECAR_KEYS))
    demand(data["file"] == f"{file.stem}.h5", f"{file}: file is the name of the shard beside it")
    demand(data["fingerprint"] == fingerprint(header), f"{file}: fingerprint is that of the store")
    counts = ("rows", "examples", "nan_losses", "example_offset") if version > 1 else ("rows", "examples")
    for key in counts:
        demand(_is_integer(data[key]), f"{file}: {key} is an integer of 0 or more")
    units = data["units"]
    demand(isinstance(units, list) and all(map(_is_integer, units)), f"{file}: units are integers of 0 or more")
    demand(units == sorted(set(units)), f"{file}: units ascend")
    demand(all(unit < header["n_units"] for unit in units), f"{file}: units are of the plan")
    hooks = [hook["name"] for hook in header["hooks"]]
    _check_hashes(file, data["blocks"], dataset_names(hooks), (32,))
    demand(_is_mapping(data["norms"]) and list(data["norms"]) == hooks, f"{file}: norms has a key for each hook")
    for hook, summary in data["norms"].items():
        _check_summary(f"{file}: norms of {hook}", summary, data["rows"])
    demand(_is_mapping(data["concepts"]), f"{file}: concepts is an object")
    demand(all(map(_is_integer, data["concepts"].values())), f"{file}: concepts counts rows")
    if version > 1:
        rows = data["segment_rows"]
        demand(_is_integer(rows, 1), f"{file}: segment_rows is an integer of 1 or more")
        _check_hashes(file, data["segments"], by_row(hooks), (16 * -(-data["rows"] // rows),))
        demand(_is_hex(data["structure"], (32,)), f"{file}: structure is a hash")
    _check_digest(file, data)
    return data


def dataset_names(hooks: Sequence[str]) -> list[str]:
    """Paths of all datasets of a shard."""
    texts = [f"examples/{field}/{part}" for field in TEXTS for part in ("data", "offsets")]
    return [*by_row(hooks), "examples/id", *texts, *(f"examples/{field}/present" for field in OPTIONAL)]


def by_row(hooks: Sequence[str]) -> list[str]:
    """Paths of the datasets with one entry a row."""
    return [
        *(f"{kind}/{hook}" for kind in ("gradients", "norms") for hook in hooks),
        *(f"rows/{f}" for f in ROW_DTYPES),
    ]


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file of the store: a regular file, UTF-8, no NaN, no key twice.

    Raises:
        RuleBrokenError: it is not.
    """
    demand(file.is_file() and not file.is_symlink(), f"{file}: regular file")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        demand(len({key for key, _ in pairs}) == len(pairs), f"{file}: no key twice")
        return dict(pairs)

    def refused(constant: str) -> None:
        demand(False, f"{file}: JSON without {constant}")

    try:
        data = json.loads(file.read_bytes().decode("utf-8"), object_pairs_hook=once, parse_constant=refused)
    except ValueError as error:
        raise RuleBrokenError(f"{file}: UTF-8 and JSON: {error}") from None
    demand(isinstance(data, dict), f"{file}: JSON object")
    return dict(data)


def _check_version(file: Path, data: dict[str, Any], name: str) -> None:
    demand(data.get("format") == name, f"{file}: format is {name}")
    version = data.get("schema_version")
    demand(_is_integer(version) and version in VERSIONS, f"{file}: schema_version is one of {VERSIONS}")


def _check_keys(file: Path, data: dict[str, Any], keys: Sequence[str]) -> None:
    wrong = sorted(set(data) ^ set(keys))
    demand(not wrong, f"{file}: exactly the keys of the format; unknown or missing: {wrong}")


def _check_digest(file: Path, data: dict[str, Any]) -> None:
    demand(data["schema_version"] == 1 or data["digest"] == digest(data), f"{file}: digest of all other keys")


def _check_hashes(file: Path, found: object, names: Sequence[str], lengths: Sequence[int]) -> None:
    demand(_is_mapping(found), f"{file}: hashes are an object")
    assert isinstance(found, dict)
    demand(set(found) == set(names), f"{file}: a hash for each dataset, got another for {set(found) ^ set(names)}")
    demand(all(_is_hex(value, lengths) for value in found.values()), f"{file}: hashes of {lengths} hex digits")


def _check_summary(where: str, summary: object, rows: int) -> None:
    demand(_is_mapping(summary), f"{where} is an object")
    assert isinstance(summary, dict)
    demand(set(summary) == {"zeros", "min", "max", "quantiles"}, f"{where}: exactly the keys of the format")
    demand(_is_integer(summary["zeros"]), f"{where}: zeros is an integer of 0 or more")
    demand(_is_mapping(summary["quantiles"]), f"{where}: quantiles is an object")
    demand(tuple(summary["quantiles"]) == (QUANTILES if rows else ()), f"{where}: quantiles are the five, or none")
    numbers = [summary["min"], summary["max"], *summary["quantiles"].values()]
    good = all(type(number) in (int, float) and abs(number) < 1e300 for number in numbers)
    demand(good if rows else numbers == [None, None], f"{where}: numbers, or null without rows")


def _old(keys: Sequence[str]) -> list[str]:
    return [key for key in keys if key not in NEW_IN_2]


def _is_integer(value: object, minimum: int = 0) -> bool:
    return type(value) is int and minimum <= value < 2**63


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _is_hex(value: object, lengths: Sequence[int]) -> bool:
    return isinstance(value, str) and len(value) in lengths and set(value) <= set("0123456789abcdef")
