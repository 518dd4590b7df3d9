"""Makes the archived stores of the format version that this code writes: `python tests/store/archive/make.py`, once.

An archive is never made anew: a version's stores are those that the first code of that version wrote. The manifest has the
hash of every archived file, and a test compares them.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from gradatoms_store import SCHEMA_VERSION, StoreWriter, merge_stores

HERE = Path(__file__).parent
MANIFEST = HERE / "MANIFEST.json"
DTYPES = ("float16", "bfloat16", "float32")
PLAN_UNITS = (4, 3)
"""Units of each of the two plans that are merged; those of the second have other numbers of rows."""

MERGED_ROWS = (10, 7)


def kit() -> Any:
    """The helpers of the store's tests: `make_header`, `make_unit`."""
    spec = importlib.util.spec_from_file_location("store_conftest", HERE.parent / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, units: Iterable[int], rows_per_shard: int, rows: int = 10, **changes: Any) -> Path:
    """A store of some units of the tests' plan."""
    tests = kit()
    with StoreWriter.create(path, tests.make_header(**changes), rows_per_shard=rows_per_shard) as writer:
        for unit in units:
            writer.append(unit, *tests.make_unit(unit, rows))
    return path


def make(folder: Path) -> None:
    """The stores of one version, in a new folder."""
    folder.mkdir()
    for dtype in DTYPES:
        write(folder / f"{dtype}.gstore", range(12), 60, dtype=dtype)
    write(folder / "unfinished.gstore", (0, 1, 5), 20)
    with tempfile.TemporaryDirectory() as other:
        parts = [
            write(
                Path(other) / f"{number}.gstore", range(n), 100, rows, plan=f"plan{number}", n_units=n, n_examples=2 * n
            )
            for number, (n, rows) in enumerate(zip(PLAN_UNITS, MERGED_ROWS, strict=True))
        ]
        merge_stores(parts, folder / "merged.gstore")
    for writers in folder.glob("*/writers"):
        shutil.rmtree(writers)


def manifest() -> dict[str, str]:
    """Hash of every archived file, as it is now."""
    files = sorted(file for file in HERE.glob("v*/**/*") if file.is_file())
    return {str(file.relative_to(HERE)): xxhash.xxh3_128_hexdigest(file.read_bytes()) for file in files}


def main() -> str | None:
    """Make the archive of this version and add it to the manifest; a text when it is there already."""
    folder = HERE / f"v{SCHEMA_VERSION}"
    if folder.exists():
        return f"{folder}: there already; an archive is never made anew"
    if MANIFEST.exists() and manifest() != json.loads(MANIFEST.read_text()):
        return f"{MANIFEST}: does not fit the files of earlier versions; restore them"
    make(folder)
    MANIFEST.write_text(json.dumps(manifest(), indent=1) + "\n")
    return None


if __name__ == "__main__":
    sys.exit(main())
