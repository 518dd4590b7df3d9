"""The catalog as a folder of pages that open from a disk or any web host: searched, sorted and filtered in the browser."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gradatoms.catalog.curves import curve_of
from gradatoms.catalog.index import Query, open_index, whole_page
from gradatoms.catalog.render import PLOTLY, STATIC, plotly_file, rendered
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.provenance import folder_of
from gradatoms.errors import OutputExistsError
from gradatoms.progress import Progress, silent

FIRST = 50
"""Atoms that the first page holds without scripts."""


def export_site(atoms: Atoms, out: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Write ``index.html``, ``atom/N.html``, their data and scripts into a new folder; nothing in it asks a server.

    Returns:
        ``path``, ``n_atoms``, ``note``.

    Raises:
        OutputExistsError: ``out`` exists.
        ConfigError: plotly is not installed.
    """
    out = Path(out)
    if out.exists():
        raise OutputExistsError(f"expected a new path, {out} exists; choose another or remove it")
    script, index, name = plotly_file(), open_index(atoms), folder_of(atoms).name
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        (partial / "atom").mkdir()
        (partial / "static").mkdir()
        for path in STATIC.values():
            shutil.copyfile(path, partial / "static" / path.name)
        shutil.copyfile(script, partial / "static" / PLOTLY)
        rows = index.find(Query(limit=-1)).rows
        _data(
            partial / "static" / "atoms.js", ATOM_ROWS=[_row(r) for r in rows], ATOM_MAP=index.map(most=len(rows) + 1)
        )
        everywhere: dict[str, Any] = {
            "static": True, "name": name, "can_compare": False, "of_weights": atoms.space == "weights",
        }  # fmt: skip
        page = rendered(
            "site.html", root="", rows=rows[:FIRST], total=len(rows), verdicts=index.values("verdict"),
            concepts=index.values("concept")[:500], hook=atoms.hook, **everywhere,
        )  # fmt: skip
        (partial / "index.html").write_text(page, encoding="utf-8", errors="replace")
        for atom in range(len(atoms)):
            found = whole_page(index, atoms, atom)
            if Path(found["model"]).is_absolute():  # where it lies here is nobody else's business
                found["model"] = Path(found["model"]).name
            curve = curve_of(folder_of(atoms), atom)
            text = rendered(
                "atom.html", root="../", atom=found, curve=curve, last=len(atoms) - 1, measuring=None, **everywhere
            )
            (partial / "atom" / f"{atom}.html").write_text(text, encoding="utf-8", errors="replace")
            progress("pages", atom + 1, len(atoms))
        partial.chmod(0o755)
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"path": str(out), "n_atoms": len(atoms), "note": f"{len(atoms)} atoms; open {out / 'index.html'}"}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """What the browser searches and shows of one atom."""
    names = ("atom", "label", "verdict", "concept", "density", "coherence", "gain")
    judged = {name: row["scores"].get(name) for name in ("detection", "fuzzing", "output")}
    return {name: row[name] for name in names} | judged | {"promoted": row["promoted"][:5]}


def _data(path: Path, **values: Any) -> None:
    """A script that sets names of the page: pages opened from a disk may not read files in another way."""
    lines = [f"window.{name} = {_script(value)};\n" for name, value in values.items()]
    path.write_text("".join(lines), encoding="utf-8", errors="replace")


def _script(value: Any) -> str:
    """JSON that is also JavaScript, and holds nothing that ends a script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
