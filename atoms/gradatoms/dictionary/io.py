"""The ``.atoms`` folder: weights that SAELens opens, codes, metrics, and what made them.

``cfg.json`` and ``sae_weights.safetensors`` follow SAELens' layout, so ``sae_lens.SAE.load_from_disk`` opens the folder
and takes raw unit pushes (``b_dec`` holds the mean push). ``topk`` gives identical codes there. ``online`` opens as
``matching_pursuit`` over the same atoms: SAELens has no lasso coder, so its codes differ from ours; the metadata says so.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from gradatoms.dictionary.base import Atoms, Coder
from gradatoms.dictionary.coding import Codes
from gradatoms.dictionary.online import LassoCoder
from gradatoms.dictionary.sae import TopKCoder
from gradatoms.errors import AtomsFormatError

FORMAT_VERSION = 1
SAELENS_FORMAT = "6.0.0"
"""SAELens drops the metadata of configs that do not name a version from 6 on."""
SIGN = "push = -gradient/norm: +atom lowers the loss of the examples it is active on; codes are non-negative"


def save_atoms(atoms: Atoms, path: str | Path) -> Atoms:
    """Write weights and config into the folder ``path`` (made if absent); each file appears whole or not at all."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    coder = atoms.coder
    weights = {"W_dec": atoms.W_dec, "b_dec": atoms.b_dec}
    cfg: dict[str, Any] = {
        "d_in": int(atoms.W_dec.shape[1]),
        "d_sae": len(atoms),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    metadata = {
        "sae_lens_version": SAELENS_FORMAT,
        "hook_name": atoms.hook,
        "model_name": atoms.config.get("model", {}).get("name"),
        "input_kind": "activation_gradient",
        "sign_convention": SIGN,
    }
    if isinstance(coder, TopKCoder):
        weights |= {"W_enc": coder.W_enc, "b_enc": coder.b_enc}
        cfg |= {"architecture": "topk", "k": coder.k, "rescale_acts_by_decoder_norm": False}
        metadata["coder"] = "topk: the same codes here and in SAELens"
    else:
        assert isinstance(coder, LassoCoder)
        cfg |= {
            "architecture": "matching_pursuit",
            "max_iterations": 8,
            "residual_threshold": coder.alpha,
            "stop_on_duplicate_support": True,
        }
        metadata |= {
            "coder": "nn_lasso here, matching pursuit in SAELens: same atoms, other codes",
            "alpha": coder.alpha,
        }
    save_whole(
        path / "sae_weights.safetensors",
        lambda p: save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, p),
    )
    write_json(path / "cfg.json", cfg | {"metadata": metadata})
    config = {"format_version": FORMAT_VERSION, **atoms.config}
    save_whole(path / "config.yaml", lambda p: p.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8"))
    return Atoms(atoms.W_dec, atoms.b_dec, coder, atoms.hook, config, path)


def load_atoms(path: str | Path) -> Atoms:
    """Open an ``.atoms`` folder.

    Raises:
        AtomsFormatError: not there, incomplete, damaged, or from a newer version; the file is named.
    """
    path = Path(path)
    if not path.is_dir():
        raise AtomsFormatError(f"expected an .atoms folder, found nothing at {path}; make one with `atoms fit`")
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        cfg = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
        if config["format_version"] > FORMAT_VERSION:
            raise AtomsFormatError(
                f"{path} is of format {config['format_version']}, this version reads {FORMAT_VERSION}; upgrade gradatoms"
            )
        weights = load_file(path / "sae_weights.safetensors")
        W_dec, b_dec = weights["W_dec"], weights["b_dec"]
        coder: Coder
        if cfg["architecture"] == "topk":
            coder = TopKCoder(weights["W_enc"], weights["b_enc"], cfg["k"])
        else:
            coder = LassoCoder(W_dec, cfg["metadata"]["alpha"])
        hook = cfg["metadata"]["hook_name"]
    except AtomsFormatError:
        raise
    except Exception as error:  # every reader has its own errors for damaged bytes
        raise AtomsFormatError(
            f"expected a complete .atoms folder at {path}, got {type(error).__name__}: {' '.join(str(error).split())}; fit again"
        ) from error
    return Atoms(W_dec, b_dec, coder, hook, config, path)


def save_codes(path: Path, codes: Codes) -> None:
    """Write codes as CSR (``indptr``, ``indices``, ``values``, attribute ``n_atoms``); row i is row i of the store."""

    def write(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            file.create_dataset("indptr", data=codes.indptr.astype(np.int64))
            file.create_dataset("indices", data=codes.indices.astype(np.int32))
            file.create_dataset("values", data=codes.data.astype(np.float32))
            file.attrs["n_atoms"] = codes.shape[1]

    save_whole(path, write)


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


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    save_whole(
        path, lambda p: p.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    )


def save_whole(path: Path, write: Any) -> None:
    """Call ``write(partial)`` and rename the partial file to ``path``: readers see the old file or the new, never half."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
