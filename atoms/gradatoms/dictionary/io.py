"""The ``.atoms`` folder: weights that SAELens opens, codes, metrics, and what made them.

``cfg.json`` and ``sae_weights.safetensors`` follow SAELens' layout, so ``sae_lens.SAE.load_from_disk`` opens the folder
and takes raw unit pushes (``b_dec`` holds the mean push). Encoders (``topk``, ``abstopk``, ``jumprelu``, ``standard``,
``gated``) and ``matching_pursuit`` give identical codes there. SAELens has no lasso and no orthogonal pursuit: such a
dictionary opens as ``matching_pursuit`` over the same atoms, with other codes, and its metadata says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import (
    Coder,
    Codes,
    GatedCoder,
    LassoCoder,
    OmpCoder,
    PursuitCoder,
    ThresholdCoder,
    TopKCoder,
)
from gradatoms.errors import AtomsFormatError
from gradatoms.files import save_whole, write_json

FORMAT_VERSION = 2
"""2: the coder is named in cfg.json's metadata; folders of version 1 (lasso and topk only) are read."""
SAELENS_FORMAT = "6.0.0"
"""SAELens drops the metadata of configs that do not name a version from 6 on."""
SIGN = "push = -gradient/norm: +atom lowers the loss of the examples it is active on"
_SAME = "the same codes here and in SAELens"
_OTHER = "matching pursuit in SAELens: same atoms, other codes"


def save_atoms(atoms: Atoms, path: str | Path) -> Atoms:
    """Write weights and config into the folder ``path`` (made if absent); each file appears whole or not at all."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    architecture, cfg, weights, coder = _describe(atoms.coder)
    weights = {"W_dec": atoms.W_dec, "b_dec": atoms.b_dec} | weights
    cfg = {
        "architecture": architecture,
        "d_in": int(atoms.W_dec.shape[1]),
        "d_sae": len(atoms),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    } | cfg
    metadata = {
        "sae_lens_version": SAELENS_FORMAT,
        "hook_name": atoms.hook,
        "model_name": atoms.config.get("model", {}).get("name"),
        "input_kind": "weight_gradient" if atoms.space == "weights" else "activation_gradient",
        "sign_convention": SIGN,
        "codes": "signed" if atoms.coder.signed else "non-negative",
    }
    save_whole(
        path / "sae_weights.safetensors",
        lambda p: save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in weights.items()}, p),
    )
    write_json(path / "cfg.json", cfg | {"metadata": metadata | coder})
    config = {"format_version": FORMAT_VERSION, **{k: v for k, v in atoms.config.items() if k != "format_version"}}
    save_whole(path / "config.yaml", lambda p: p.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8"))
    return Atoms(atoms.W_dec, atoms.b_dec, atoms.coder, atoms.hook, config, path)


def _describe(coder: Coder) -> tuple[str, dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """SAELens' architecture, its settings, the encoder's weights, and what the metadata says of our coder."""
    match coder:
        case TopKCoder():
            name = "abstopk" if coder.signed else "topk"
            settings: dict[str, Any] = {"k": coder.k, "rescale_acts_by_decoder_norm": False}
            return name, settings, {"W_enc": coder.W_enc, "b_enc": coder.b_enc}, {"coder": name, "coder_note": _SAME}
        case ThresholdCoder():
            weights = {"W_enc": coder.W_enc, "b_enc": coder.b_enc}
            if not coder.threshold.any():
                return "standard", {}, weights, {"coder": "standard", "coder_note": _SAME}
            return "jumprelu", {}, weights | {"threshold": coder.threshold}, {"coder": "jumprelu", "coder_note": _SAME}
        case GatedCoder():
            weights = {"W_enc": coder.W_enc, "b_gate": coder.b_gate, "r_mag": coder.r_mag, "b_mag": coder.b_mag}
            return "gated", {}, weights, {"coder": "gated", "coder_note": _SAME}
        case PursuitCoder():
            settings = {"max_iterations": coder.steps, "residual_threshold": coder.threshold}
            return (
                "matching_pursuit", settings | {"stop_on_duplicate_support": False}, {},
                {"coder": "matching_pursuit", "coder_note": _SAME},
            )  # fmt: skip
        case LassoCoder():
            settings = {"max_iterations": 8, "residual_threshold": coder.alpha, "stop_on_duplicate_support": True}
            about = {
                "coder": "lasso",
                "alpha": coder.alpha,
                "signed": coder.signed,
                "coder_note": f"lasso here, {_OTHER}",
            }
            return "matching_pursuit", settings, {}, about
        case OmpCoder():
            settings = {"max_iterations": coder.k, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
            about = {"coder": "omp", "k": coder.k, "signed": coder.signed}
            return (
                "matching_pursuit",
                settings,
                {},
                about | {"coder_note": f"orthogonal matching pursuit here, {_OTHER}"},
            )
    raise AtomsFormatError(f"expected a coder that can be saved, got {type(coder).__name__}")


def read_coder(cfg: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Coder:
    """The coder that ``save_atoms`` described, or that SAELens would use.

    Raises:
        KeyError: a weight or setting is missing.
        ValueError: an architecture that is not known here.
    """
    metadata, W_dec = cfg.get("metadata") or {}, weights["W_dec"]
    kind = metadata.get("coder", cfg["architecture"])
    if cfg["architecture"] == "matching_pursuit":
        if kind == "omp":
            return OmpCoder(W_dec, int(metadata["k"]), bool(metadata["signed"]))
        if "alpha" in metadata:  # a lasso; format version 1 says so by this alone
            return LassoCoder(W_dec, metadata["alpha"], bool(metadata.get("signed", False)))
        steps = cfg.get("max_iterations") or W_dec.shape[1]
        return PursuitCoder(W_dec, int(steps), float(cfg.get("residual_threshold", 0.0)))
    if cfg["architecture"] in ("topk", "abstopk"):
        return TopKCoder(weights["W_enc"], weights["b_enc"], int(cfg["k"]), cfg["architecture"] == "abstopk")
    if cfg["architecture"] == "gated":
        return GatedCoder(weights["W_enc"], weights["b_gate"], weights["r_mag"], weights["b_mag"])
    if cfg["architecture"] in ("standard", "jumprelu"):
        zero = np.zeros(len(W_dec), np.float32)
        threshold = weights["threshold"] if cfg["architecture"] == "jumprelu" else zero
        return ThresholdCoder(weights["W_enc"], weights["b_enc"], threshold)
    raise ValueError(f"expected an architecture known here, got {cfg['architecture']!r}")


def load_atoms(path: str | Path) -> Atoms:
    """Open an ``.atoms`` folder, or a dictionary of SAELens, sparsify or dictionary_learning (``interop.py``).

    Raises:
        AtomsFormatError: not there, incomplete, damaged, or from a newer version; the file is named.
    """
    from gradatoms.dictionary.interop import is_foreign, load_foreign

    path = Path(path)
    if not path.is_dir():
        raise AtomsFormatError(f"expected an .atoms folder, found nothing at {path}; make one with `atoms fit`")
    if is_foreign(path):
        return load_foreign(path)
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        cfg = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
        if config["format_version"] > FORMAT_VERSION:
            raise AtomsFormatError(
                f"{path} is of format {config['format_version']}, this version reads {FORMAT_VERSION}; upgrade gradatoms"
            )
        weights = load_file(path / "sae_weights.safetensors")
        coder = read_coder(cfg, weights)
        hook = cfg["metadata"]["hook_name"]
    except AtomsFormatError:
        raise
    except Exception as error:  # every reader has its own errors for damaged bytes
        raise AtomsFormatError(
            f"expected a complete .atoms folder at {path}, got {type(error).__name__}: {' '.join(str(error).split())}; fit again"
        ) from error
    return Atoms(weights["W_dec"], weights["b_dec"], coder, hook, config, path)


def save_codes(path: Path, codes: Codes | Iterable[Codes], n_atoms: int | None = None) -> None:
    """Write codes as CSR (``indptr``, ``indices``, ``values``, attribute ``n_atoms``); row i is row i of the store.

    Args:
        codes: all rows, or parts that follow each other; only one part is held at a time.
        n_atoms: needed with parts.
    """
    parts = [codes] if isinstance(codes, csr_array) else codes
    n_atoms = codes.shape[1] if isinstance(codes, csr_array) else n_atoms

    def write(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            for name, dtype in (("indptr", np.int64), ("indices", np.int32), ("values", np.float32)):
                file.create_dataset(name, (1 if name == "indptr" else 0,), dtype, maxshape=(None,), chunks=(2**16,))
            for part in parts:
                _append(file["indptr"], part.indptr[1:].astype(np.int64) + len(file["indices"]))
                _append(file["indices"], part.indices)
                _append(file["values"], part.data)
            file.attrs["n_atoms"] = n_atoms

    save_whole(path, write)


def _append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    start = len(dataset)
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def load_codes(path: str | Path) -> Codes:
    """Read codes written by ``save_codes``.

    Raises:
        AtomsFormatError: not there or damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            indptr, indices, values = (file[name][:] for name in ("indptr", "indices", "values"))
            return csr_array((values, indices, indptr), shape=(len(indptr) - 1, int(file.attrs["n_atoms"])))
    except (OSError, KeyError, ValueError) as error:
        raise AtomsFormatError(
            f"expected codes at {path}, got {type(error).__name__}: {error}; run `atoms fit` again"
        ) from error
