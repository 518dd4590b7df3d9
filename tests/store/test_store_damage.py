"""Damaged, foreign, future and hostile stores are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from gradatoms_store import StoreFormatError, StoreNotFoundError, StoreWriter, open_store
from gradatoms_store.jsonio import DIGEST, digest_of


def forged(data: dict[str, Any]) -> str:
    """JSON text whose digest fits, as a forger would write it."""
    rest = {key: value for key, value in data.items() if key != DIGEST}
    return json.dumps(rest | {DIGEST: digest_of(rest)})


def edit(path: Path, **changes: Any) -> None:
    path.write_text(forged(json.loads(path.read_text()) | changes))


def refit(shard: Path) -> None:
    """Let the sidecar state the shard's new size, as a forger would."""
    edit(shard.with_suffix(".json"), bytes=shard.stat().st_size)


def test_missing_store(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"none\.gstore"):
        open_store(tmp_path / "none.gstore")
    with pytest.raises(StoreNotFoundError, match=r"store\.json"):
        open_store(tmp_path)


@pytest.mark.parametrize("cut", [1, 100, -2])
def test_truncated_shard(store_path: Path, samples: SimpleNamespace, cut: int) -> None:
    shard = store_path / "shards" / "00001.h5"
    content = shard.read_bytes()
    shard.write_bytes(content[:-cut] if cut > 0 else content[: len(content) // 2])
    with pytest.raises(StoreFormatError, match=r"00001\.h5: expected \d+ bytes"):
        open_store(store_path)
    with pytest.raises(StoreFormatError, match=r"00001\.h5"):
        StoreWriter.resume(store_path, samples.header())
    refit(shard)
    with pytest.raises(StoreFormatError, match=r"00001\.h5"):
        open_store(store_path)


def test_missing_swapped_and_linked_shards(store_path: Path, tmp_path: Path, fill: Callable[..., Path]) -> None:
    shard = store_path / "shards" / "00001.h5"
    kept = tmp_path / "kept.h5"
    shard.rename(kept)
    with pytest.raises(StoreFormatError, match=r"00001\.h5: expected the shard"):
        open_store(store_path)
    shard.symlink_to(kept)
    with pytest.raises(StoreFormatError, match=r"00001\.h5"):
        open_store(store_path)
    shard.unlink()
    other = fill(tmp_path / "other.gstore", dtype="float32") / "shards" / "00001.h5"
    shutil.copy(other, shard)
    refit(shard)
    with pytest.raises(StoreFormatError, match=r"00001\.h5: gradients/.* dtype"):
        open_store(store_path)
    shutil.copy(other, shard)
    shutil.copy(other.with_suffix(".json"), shard.with_suffix(".json"))
    with pytest.raises(StoreFormatError, match=r"00001\.json: field 'fingerprint'"):
        open_store(store_path)


def test_duplicated_shard(store_path: Path) -> None:
    shards = store_path / "shards"
    for ending in ("h5", "json"):
        shutil.copy(shards / f"00000.{ending}", shards / f"00003.{ending}")
    edit(shards / "00003.json", file="00003.h5")
    with pytest.raises(StoreFormatError, match=r"00003\.json: field 'units' holds unit 0, which 00000\.json holds too"):
        open_store(store_path)


def test_damaged_sidecars(store_path: Path) -> None:
    sidecar = store_path / "shards" / "00002.json"
    good = json.loads(sidecar.read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"rows": good["rows"] + 1}, r"00002\.h5: .* expected shape"),
        ({"rows": -1}, "'rows'"),
        ({"rows": "40"}, "'rows'"),
        ({"units": [0.5]}, "'units'"),
        ({"units": [11, 10]}, "'units'"),
        ({"units": [99]}, "'units'"),
        ({"file": "../../etc/passwd.h5"}, "'file' expected '00002.h5'"),
        ({"file": "00001.h5"}, "'file'"),
        ({"blocks": {}}, "'blocks'"),
        ({"norms": {}}, "'norms'"),
        ({"schema_version": 3}, "newer gradatoms: upgrade"),
        ({"format": "zip"}, "'format'"),
        ({"surprise": 1}, "unknown field.* surprise"),
        ({"concepts": {"a": None}}, "concepts: field 'a'"),
    ]
    for change, message in changes:
        sidecar.write_text(forged(good | change))
        with pytest.raises(StoreFormatError, match=message) as caught:
            open_store(store_path)
        assert "00002." in str(caught.value)
        assert "\n" not in str(caught.value)
    for text in ("", "{", "[]", "[" * 100_000, json.dumps(good)[:-9], '{"format": NaN}'):
        sidecar.write_text(text)
        with pytest.raises(StoreFormatError, match=r"00002\.json"):
            open_store(store_path)
    sidecar.write_bytes(b"\xff\xfe")
    with pytest.raises(StoreFormatError, match=r"00002\.json"):
        open_store(store_path)
    sidecar.write_text(json.dumps(good))
    open_store(store_path)
    sidecar.rename(sidecar.with_name("2.json"))
    with pytest.raises(StoreFormatError, match=r"2\.json: expected a name"):
        open_store(store_path)


def test_damaged_store_json(store_path: Path) -> None:
    file = store_path / "store.json"
    good = json.loads(file.read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"schema_version": 3}, "newer gradatoms: upgrade"),
        ({"dtype": "int8"}, "dtype"),
        ({"hooks": []}, "hooks"),
        ({"hooks": [{"name": "a/b", "hf_name": "", "d": 3}]}, "hook name"),
        ({"hooks": [{"name": "a", "hf_name": "", "d": 3, "e": 1}]}, r"hooks\[0\].* e"),
        ({"hooks": ["a"]}, r"hooks\[0\]"),
        ({"model": {"name": []}}, "'name'"),
        ({"n_units": True}, "'n_units'"),
        ({"extra": 1}, "unknown field.* extra"),
        ({"objective": "contrast"}, r"00000\.json: field 'fingerprint'"),
    ]
    for change, message in changes:
        file.write_text(forged(good | change))
        with pytest.raises(StoreFormatError, match=message):
            open_store(store_path)
    for field in good:
        file.write_text(json.dumps({key: value for key, value in good.items() if key != field}))
        with pytest.raises(StoreFormatError, match=rf"store\.json: field '{field}' is missing"):
            open_store(store_path)


def test_flipped_bytes_in_rows_and_examples_are_found(store_path: Path) -> None:
    shard = store_path / "shards" / "00001.h5"
    good = shard.read_bytes()
    for block, attribute in (("rows/loss", "rows"), ("examples/prompt/data", "examples")):
        with h5py.File(shard, "r") as file:
            offset = file[block].id.get_offset()
        damaged = bytearray(good)
        damaged[offset] ^= 1
        shard.write_bytes(damaged)
        store = open_store(store_path)
        with pytest.raises(StoreFormatError, match=rf"00001\.h5: dataset {block} expected hash"):
            getattr(store, attribute)
    shard.write_bytes(b"\0" * len(good))
    with pytest.raises(StoreFormatError, match=r"00001\.h5"):
        open_store(store_path)


def replace(file: h5py.File, name: str, **options: Any) -> None:
    values = file[name][:]
    del file[name]
    file.create_dataset(name, data=values, **options)


def attack_soft_link(file: h5py.File, outside: Path) -> None:
    file.move("rows/loss", "rows/real")
    file["rows/loss"] = h5py.SoftLink("/rows/real")


def attack_only_soft_link(file: h5py.File, outside: Path) -> None:
    del file["rows/target"]
    file["rows/target"] = h5py.SoftLink("/rows/token")


def attack_external_link(file: h5py.File, outside: Path) -> None:
    del file["norms"]
    file["norms"] = h5py.ExternalLink(str(outside), "/norms")


def attack_external_storage(file: h5py.File, outside: Path) -> None:
    shape = file["rows/loss"].shape
    del file["rows/loss"]
    file.create_dataset("rows/loss", shape, "<f4", external=[(str(outside), 0, h5py.h5f.UNLIMITED)])


def attack_virtual(file: h5py.File, outside: Path) -> None:
    shape = file["rows/loss"].shape
    del file["rows/loss"]
    layout = h5py.VirtualLayout(shape, "<f4")
    layout[:] = h5py.VirtualSource(str(outside), "rows/loss", shape)
    file.create_virtual_dataset("rows/loss", layout)


def attack_filter(file: h5py.File, outside: Path) -> None:
    replace(file, "rows/loss", chunks=True, compression="gzip")


def attack_chunks(file: h5py.File, outside: Path) -> None:
    replace(file, "rows/loss", chunks=True)


def attack_dtype(file: h5py.File, outside: Path) -> None:
    values = file["rows/token"][:]
    del file["rows/token"]
    file["rows/token"] = values.astype(">i4")


def attack_absurd_shape(file: h5py.File, outside: Path) -> None:
    del file["examples/prompt/data"]
    file.create_dataset("examples/prompt/data", (2**50,), "|u1")


def attack_dataset_for_group(file: h5py.File, outside: Path) -> None:
    del file["norms"]
    file["norms"] = np.zeros(3, np.float32)


def attack_extra(file: h5py.File, outside: Path) -> None:
    file["rows/more"] = np.zeros(3)


ATTACKS = [value for name, value in sorted(globals().items()) if name.startswith("attack_")]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_hostile_shard(store_path: Path, tmp_path: Path, attack: Callable[[h5py.File, Path], None]) -> None:
    outside = tmp_path / "outside.h5"
    shard = store_path / "shards" / "00001.h5"
    shutil.copy(shard, outside)
    with h5py.File(shard, "r+") as file:
        attack(file, outside)
    refit(shard)
    with pytest.raises(StoreFormatError, match=r"00001\.h5: [^ ]+ expected") as caught:
        open_store(store_path)
    assert "readable HDF5 file" not in str(caught.value)  # refused for what it is, not by accident


def test_bfloat16_needs_its_attribute(tmp_path: Path, fill: Callable[..., Path], samples: SimpleNamespace) -> None:
    path = fill(tmp_path / "s.gstore", dtype="bfloat16")
    shard = path / "shards" / "00000.h5"
    with h5py.File(shard, "r+") as file:
        del file["gradients"][samples.hooks[0]].attrs["dtype"]
    refit(shard)
    with pytest.raises(StoreFormatError, match="attribute dtype"):
        open_store(path)
