"""Our atoms for other tools; as a folder that SAELens opens, with codes that it can compute."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes, GatedCoder, ThresholdCoder, TopKCoder
from gradatoms.dictionary.interop import UNIT
from gradatoms.dictionary.io import load_atoms, save_atoms
from gradatoms.dictionary.neuronpedia import export_neuronpedia
from gradatoms.dictionary.pushes import Pushes
from gradatoms.dictionary.vectors import export_gguf, export_vector
from gradatoms.errors import ConfigError, OutputExistsError
from gradatoms.files import write_json
from gradatoms_store import open_store

RIDGE = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Penalties that a distilled encoder is tried with, in units of the mean variance of a coordinate."""
LEAST_ROWS = 20
"""Rows that a distilled encoder needs at least."""
DISTIL_ROWS = 20_000
"""Rows of a store that a distilled encoder is learned from, at most."""


FORMS = {
    "saelens": {"doubled", "distil"},
    "vector": {"chosen"},
    "gguf": {"chosen", "norm"},
    "neuronpedia": {"chosen", "model"},
    "site": set(),
}
"""Forms, and the options that each takes."""


def export_folder(
    folder: str | Path,
    form: str,
    out: str | Path,
    *,
    doubled: bool = False,
    distil: str | Path | None = None,
    chosen: Sequence[int] = (),
    norm: float | int | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """Write the atoms of a folder for another tool.

    Args:
        form: ``saelens`` (a folder), ``vector`` (safetensors), ``gguf`` (a control vector for llama.cpp), ``neuronpedia``
            (JSON) or ``site`` (the catalog as a folder of pages); see ``export_saelens``, ``export_vector``,
            ``export_gguf``, ``export_neuronpedia`` and ``catalog.site.export_site``.
        doubled, distil: saelens, as ``doubled`` and ``distil_on`` there; ``distil`` is a store.
        chosen: the other forms: atoms, none for all; exactly one for gguf.
        norm: gguf: a typical ‖h‖.
        model: neuronpedia: where the tokenizer lies.

    Returns:
        what was written, ``path`` and ``note`` among it.

    Raises:
        ConfigError: another form, or an option that the form does not have.
        OutputExistsError: ``out`` exists.
    """
    if form not in FORMS:
        raise ConfigError(f"expected a form of {', '.join(FORMS)}, got {form!r}")
    chosen = list(dict.fromkeys(chosen))
    given = {"doubled": doubled or None, "distil": distil, "chosen": chosen or None, "norm": norm, "model": model}
    foreign = sorted(name for name, value in given.items() if value is not None and name not in FORMS[form])
    if foreign:
        flags = ", ".join("--atom" if name == "chosen" else f"--{name}" for name in foreign)
        raise ConfigError(f"expected options of the form {form}, got {flags}; leave it out or choose another form")
    if form == "gguf" and len(chosen) != 1:
        raise ConfigError(f"expected one atom for a control vector, got {len(chosen)}; name it with --atom")
    atoms = load_atoms(folder)
    match form:
        case "vector":
            return export_vector(atoms, out, chosen)
        case "gguf":
            return export_gguf(atoms, out, chosen[0], norm=norm)
        case "neuronpedia":
            return export_neuronpedia(atoms, out, chosen, model=model)
        case "site":
            from gradatoms.catalog.site import export_site  # needs the extra `catalog`

            return export_site(atoms, out)
    rows = None if distil is None else Pushes(open_store(distil), hook=atoms.hook).sample(DISTIL_ROWS, 0)
    return export_saelens(atoms, out, doubled=doubled, distil_on=rows)


def export_saelens(
    atoms: Atoms,
    path: str | Path,
    *,
    doubled: bool = False,
    distil_on: Float[np.ndarray, "N D"] | None = None,
) -> dict[str, Any]:
    """Write a folder that ``sae_lens.SAE.load_from_disk`` opens; its metadata says how its codes relate to ours.

    Args:
        doubled: a signed top-k dictionary as an unsigned ``topk`` of 2K atoms [W; −W]: the same codes, split by sign.
        distil_on: pushes to learn an encoder from, for a dictionary whose codes SAELens cannot compute (lasso, orthogonal
            matching pursuit). c(x) = topk(s·(x·W_enc + b_enc)): the product by ridge least squares from the pushes to their
            codes, drawn to W_decᵀ; s > 0 undoes the shrinkage; k is the mean number of atoms a row, rounded. 70 % of the
            rows are fitted, the penalty is the best of ``RIDGE`` on 15 %, and the FVU of both coders is told for the rest.

    Returns:
        what was written: ``path``, ``architecture``, ``n_atoms``, ``note``, and ``distilled`` (``fvu_coder``, ``fvu_distilled``
        and what they are over), as in the metadata.

    Raises:
        OutputExistsError: ``path`` exists.
        ConfigError: ``doubled`` without signed top-k codes, ``distil_on`` for a dictionary that has an encoder, or too few rows.
    """
    path = Path(path)
    if path.exists():
        raise OutputExistsError(f"expected a new path, {path} exists; choose another or remove it")
    about: dict[str, Any] = {}
    if distil_on is not None:
        atoms, about = _distilled(atoms, distil_on)
    if doubled:
        atoms = _doubled(atoms)
        half = len(atoms) // 2
        split = f"atom a + {half} is atom a with the other sign; codes are the signed ones, split by sign"
        about |= {"doubled": True, "coder_note": "; ".join(filter(None, [about.get("coder_note"), split]))}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_atoms(atoms, partial)
        (partial / "config.yaml").unlink()
        cfg = json.loads((partial / "cfg.json").read_text(encoding="utf-8"))
        cfg["metadata"] |= {"exported_by": "gradatoms"} | about
        write_json(partial / "cfg.json", cfg)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    written = {"path": str(path), "architecture": cfg["architecture"], "n_atoms": len(atoms)}
    written |= {"note": cfg["metadata"]["coder_note"]}
    return written | {k: v for k, v in about.items() if k != "coder_note"}


def _doubled(atoms: Atoms) -> Atoms:
    coder = atoms.coder
    if not (isinstance(coder, TopKCoder) and coder.signed):
        raise ConfigError("expected signed top-k codes to split by sign, these are not; export without doubled")
    W_enc, b_enc = np.hstack([coder.W_enc, -coder.W_enc]), np.hstack([coder.b_enc, -coder.b_enc])
    return replace(atoms, W_dec=np.vstack([atoms.W_dec, -atoms.W_dec]), coder=TopKCoder(W_enc, b_enc, coder.k))


def _distilled(atoms: Atoms, rows: Float[np.ndarray, "N D"]) -> tuple[Atoms, dict[str, Any]]:
    """The same atoms with an encoder that imitates their codes, and how well it does."""
    if isinstance(atoms.coder, TopKCoder | ThresholdCoder | GatedCoder):
        raise ConfigError(
            "expected codes that need an encoder, this dictionary has one; export without rows to distil on"
        )
    if len(rows) < LEAST_ROWS or rows.shape[1] != atoms.W_dec.shape[1]:
        raise ConfigError(
            f"expected at least {LEAST_ROWS} pushes of {atoms.W_dec.shape[1]} coordinates to distil on, got {rows.shape}"
        )
    order, n = np.random.default_rng(0).permutation(len(rows)), len(rows)
    X = atoms.center(np.asarray(rows, dtype=np.float32))[order]
    codes = atoms.coder.encode(X)
    fitted, chosen = slice(0, int(0.7 * n)), slice(int(0.7 * n), int(0.85 * n))
    aside = slice(int(0.85 * n), n)
    k = max(1, round(codes[fitted].nnz / fitted.stop))
    candidates = [TopKCoder(W, b, k, atoms.coder.signed) for W, b in _ridge(X[fitted], codes[fitted], atoms.W_dec)]
    candidates = [_regained(atoms, candidate, X[fitted]) for candidate in candidates]
    errors = [_fvu(atoms, X[chosen], candidate.encode(X[chosen])) for candidate in candidates]
    best = int(np.argmin(errors))
    about = {
        "fvu_coder": _fvu(atoms, X[aside], codes[aside]),
        "fvu_distilled": _fvu(atoms, X[aside], candidates[best].encode(X[aside])),
        "k": k,
        "ridge": RIDGE[best],
        "rows_fitted": fitted.stop,
        "rows_measured": n - aside.start,
    }
    name = type(atoms.coder).__name__.removesuffix("Coder").lower()
    note = (
        f"other codes than ours: ours are {name} codes and leave {about['fvu_coder']:.3f} of the variance of unseen rows "
        f"unexplained; this encoder was learned to imitate them and leaves {about['fvu_distilled']:.3f}"
    )
    return replace(atoms, coder=candidates[best]), {"coder_note": note, "distilled": about}


def _ridge(
    X: Float[np.ndarray, "N D"], codes: Codes, W_dec: Float[np.ndarray, "K D"]
) -> list[tuple[Float[np.ndarray, "D K"], Float[np.ndarray, " K"]]]:
    """argmin_{W,b} ‖X·W + b − C‖² + λ‖W − W_decᵀ‖² for every λ of ``RIDGE``, by one eigendecomposition."""
    mean = X.mean(axis=0)
    centred = X - mean
    gram = (centred.T @ centred).astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    target = vectors.T @ ((codes.T @ centred).T - gram @ W_dec.T)
    found = []
    for penalty in RIDGE:
        change = vectors @ (target / (values.clip(0) + penalty * values.mean())[:, None])
        W = np.asarray(W_dec.T + change, dtype=np.float32)
        found.append((W, np.asarray(codes.mean(axis=0), dtype=np.float32) - mean @ W))
    return found


def _regained(atoms: Atoms, coder: TopKCoder, X: Float[np.ndarray, "N D"]) -> TopKCoder:
    """The same choices with all weights times argmin_s ‖X − s·C·W_dec‖²: a ridge shrinks the weights it keeps."""
    found = coder.encode(X) @ atoms.W_dec
    size = float((found * found).sum())
    gain = np.float32(max(float((found * X).sum()) / size, UNIT) if size > 0 else 1.0)
    return replace(coder, W_enc=coder.W_enc * gain, b_enc=coder.b_enc * gain)


def _fvu(atoms: Atoms, X: Float[np.ndarray, "N D"], codes: Codes) -> float:
    """Share of the variance of centred pushes that is left unexplained."""
    return float(((X - codes @ atoms.W_dec) ** 2).sum() / (X**2).sum())
