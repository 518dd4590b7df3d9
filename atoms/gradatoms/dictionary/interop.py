"""Dictionaries of other libraries as our atoms.

A dictionary of SAELens, sparsify or dictionary_learning explains x ≈ b_dec + Σ_a c_a · W_dec[a] with atoms of any norm n_a
and its own codes c. Loaded here, the atoms have unit length and the codes are c_a · n_a: the reconstruction is the same.
Which atoms are chosen is the peer's own rule. Where that rule looks at what the norms change (top-k by values before the
decoder norm, matching pursuit with long or short atoms) a coder here keeps the peer's encoder and scales after it.
Everything is computed in float32, whatever the weights are stored in. An atom whose decoder row is zero stays a zero row
that no code uses.

SAELens: ``cfg.json``, ``sae_weights.safetensors``. sparsify: ``cfg.json``, ``sae.safetensors``, c = topk(relu(W(x − b_dec) + b)).
dictionary_learning: ``config.json`` with ``ae.pt`` (or ``ae.safetensors``); batch-top-k codes are those of its threshold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array, vstack

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Coder, Codes, GatedCoder, PursuitCoder, ThresholdCoder, TopKCoder
from gradatoms.errors import AtomsFormatError

UNIT = 1e-6
"""Norms this close to 1 are 1: scaling by them changes no choice beyond float32 rounding."""
_ROWS = 256


@dataclass(frozen=True)
class ScaledCoder(Coder):
    """The codes of another coder, each atom's times a scale: choices by a peer's encoder, weights for unit atoms."""

    inner: Coder
    scale: Float[np.ndarray, " K"]
    signed: bool = False

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        codes = self.inner.encode(X)
        scaled = csr_array((codes.data * self.scale[codes.indices], codes.indices, codes.indptr), shape=codes.shape)
        scaled.eliminate_zeros()
        return scaled


@dataclass(frozen=True)
class StepwisePursuitCoder(Coder):
    """Matching pursuit step by step as SAELens does it: atoms of any norm, and both of its ways to stop.

    A step takes the atom of largest pull r·w, adds the pull to its weight and takes pull·w out of what is left, r. A row
    ends when ‖r‖ < threshold, or (``stop_on_same``) after a step that brought no new atom.
    """

    atoms: Float[np.ndarray, "K D"]
    steps: int
    threshold: float
    stop_on_same: bool

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        parts = [csr_array((0, len(self.atoms)), dtype=np.float32)]
        parts += [csr_array(self._dense(X[start : start + _ROWS])) for start in range(0, len(X), _ROWS)]
        return csr_array(vstack(parts, format="csr"))

    def _dense(self, X: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        left, row = X.astype(np.float32), np.arange(len(X))
        codes, open_ = np.zeros((len(X), len(self.atoms)), np.float32), np.ones(len(X), bool)
        for _ in range(self.steps):
            best = (left @ self.atoms.T).argmax(axis=1)
            pull = np.where(open_, np.einsum("nd,nd->n", left, self.atoms[best]), 0).clip(0)
            if self.stop_on_same:
                open_ &= (codes[row, best] == 0) & (pull > 0)
            codes[row, best] += pull
            left -= pull[:, None] * self.atoms[best]
            if self.threshold > 0:
                open_ &= np.linalg.norm(left, axis=1) >= self.threshold
            if not pull.any():
                break
        return codes


def is_foreign(path: Path) -> bool:
    """Whether the folder holds another library's dictionary (or several, one a subfolder), and not a damaged one of ours."""
    if (path / "config.yaml").exists() or any((path / name).exists() for name in ("metrics.json", "codes.h5")):
        return False
    if _library(path) is None:
        return bool(_inside(path))
    metadata = _quiet_json(path / "cfg.json").get("metadata") or {}
    return metadata.get("input_kind") != "activation_gradient" or "exported_by" in metadata


def load_foreign(path: Path) -> Atoms:
    """Open a dictionary of SAELens, sparsify or dictionary_learning; ``config`` says which library and architecture.

    ``ae.pt`` is a pickle. It is read by ``torch.load`` with ``weights_only=True``, which builds tensors and plain
    containers and refuses everything else: no code in the file runs. All other weights are safetensors.

    Raises:
        AtomsFormatError: damaged, or of a kind that has no exact counterpart here; the message names it.
    """
    library = _library(path)
    if library is None:
        raise AtomsFormatError(
            f"expected one dictionary, {path} holds several ({', '.join(_inside(path)[:8])}); name one of them"
        )
    try:
        peer = _READERS[library](path)
    except AtomsFormatError:
        raise
    except Exception as error:  # every reader has its own errors for damaged bytes
        raise AtomsFormatError(
            f"expected a dictionary of {library} at {path}, got {type(error).__name__}: {' '.join(str(error).split())}; "
            "get the folder again"
        ) from error
    norms = np.linalg.norm(peer.W_dec, axis=1)
    W_dec = peer.W_dec / np.where(norms > 0, norms, 1)[:, None]
    config = {"kind": "foreign", "library": library, "architecture": peer.architecture}
    return Atoms(W_dec, peer.b_dec, _for_unit_atoms(peer.coder, norms), peer.hook, config, path)


@dataclass(frozen=True)
class _Peer:
    """A dictionary in its library's own terms: x ≈ b_dec + Σ_a c_a · W_dec[a] with c = coder(x − b_dec)."""

    architecture: str
    hook: str
    W_dec: Float[np.ndarray, "K D"]
    b_dec: Float[np.ndarray, " D"]
    coder: Coder


def _for_unit_atoms(coder: Coder, norms: Float[np.ndarray, " K"]) -> Coder:
    """The coder whose codes are those of ``coder`` times ``norms``."""
    close = bool(np.abs(norms - 1).max() <= UNIT)
    match coder:
        case TopKCoder() if close:
            return replace(coder, W_enc=coder.W_enc * norms, b_enc=coder.b_enc * norms)
        case ThresholdCoder():
            return ThresholdCoder(coder.W_enc * norms, coder.b_enc * norms, coder.threshold * norms)
        case GatedCoder():
            return GatedCoder(coder.W_enc * norms, coder.b_gate * norms, coder.r_mag, coder.b_mag * norms)
    return coder if close else ScaledCoder(coder, norms, coder.signed)


# SAELens

_LINEAR = {"W_enc": "DK", "b_enc": "K", "W_dec": "KD", "b_dec": "D"}
_SAELENS = {
    "topk": _LINEAR,
    "abstopk": _LINEAR,
    "standard": _LINEAR,
    "jumprelu": _LINEAR | {"threshold": "K"},
    "gated": {"W_enc": "DK", "b_gate": "K", "r_mag": "K", "b_mag": "K", "W_dec": "KD", "b_dec": "D"},
    "matching_pursuit": {"W_dec": "KD", "b_dec": "D"},
}


def _saelens(path: Path) -> _Peer:
    cfg = _read_json(path / "cfg.json")
    activation = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))  # of versions before 6
    architecture = "topk" if activation == "topk" else cfg.get("architecture", "standard")
    _require(architecture in _SAELENS, path, f"an architecture of {', '.join(_SAELENS)}", repr(architecture))
    _require(activation in ("relu", "topk"), path, "the activation relu or topk", repr(activation))
    normalize = cfg.get("normalize_activations") or "none"
    _require(
        normalize == "none", path, "normalize_activations none",
        f"{normalize!r}; fold it into the weights first (fold_activation_norm_scaling_factor in SAELens)",
    )  # fmt: skip
    tensors = _tensors(path / "sae_weights.safetensors")
    if "log_threshold" in tensors:  # of older checkpoints
        tensors["threshold"] = np.exp(tensors.pop("log_threshold"))
    if np.all(tensors.get("scaling_factor", 0) == 1):
        del tensors["scaling_factor"]
    w = _shaped(tensors, _SAELENS[architecture], path)
    hook = (cfg.get("metadata") or {}).get("hook_name") or cfg.get("hook_name") or cfg.get("hook_point")
    subtracted = cfg.get("apply_b_dec_to_input", True)
    W_dec, b_dec = w["W_dec"], w["b_dec"]
    if architecture == "matching_pursuit":
        b_dec = b_dec if subtracted else np.zeros_like(b_dec)  # its decoder adds what its encoder took off
        coder = _pursuit(cfg, W_dec)
    elif architecture == "gated":
        gate = _moved(w["b_gate"], w["W_enc"], b_dec, subtracted)
        magnitude = _moved(w["b_mag"], w["W_enc"] * np.exp(w["r_mag"]), b_dec, subtracted)
        coder = GatedCoder(w["W_enc"], gate, w["r_mag"], magnitude)
    else:
        b_enc = _moved(w["b_enc"], w["W_enc"], b_dec, subtracted)
        if architecture in ("topk", "abstopk"):
            k = (cfg.get("activation_fn_kwargs") or {}).get("k", cfg.get("k"))
            coder = _top_k(w["W_enc"], b_enc, k, path, signed=architecture == "abstopk")
            if cfg.get("rescale_acts_by_decoder_norm"):  # it chooses by c·n and decodes c·n/n: atoms are unit already
                norms = np.linalg.norm(W_dec, axis=1)
                coder = replace(coder, W_enc=coder.W_enc * norms, b_enc=coder.b_enc * norms)
                W_dec = W_dec / np.where(norms > 0, norms, 1)[:, None]
        else:
            coder = ThresholdCoder(w["W_enc"], b_enc, w.get("threshold", np.zeros_like(b_enc)))
    return _Peer(architecture, hook or "unknown", W_dec, b_dec, coder)


def _pursuit(cfg: Mapping[str, Any], W_dec: Float[np.ndarray, "K D"]) -> Coder:
    steps, threshold = int(cfg.get("max_iterations") or W_dec.shape[1]), float(cfg.get("residual_threshold", 1e-2))
    same = bool(cfg.get("stop_on_duplicate_support", True))
    if not same and threshold <= 0 and np.abs(np.linalg.norm(W_dec, axis=1) - 1).max() <= UNIT:
        return PursuitCoder(W_dec, steps)
    return StepwisePursuitCoder(W_dec, steps, threshold, same)


# sparsify

_SPARSIFY_KNOWN = {"normalize_decoder", "multi_topk", "signed"}


def _sparsify(path: Path) -> _Peer:
    cfg = _read_json(path / "cfg.json")
    _require(cfg.get("activation", "topk") == "topk", path, "the activation topk", repr(cfg.get("activation")))
    unknown = [k for k, v in cfg.items() if k not in _SPARSIFY_KNOWN and (v is True or (k.startswith("n_") and v))]
    _require(not unknown, path, "a plain sparse autoencoder of one layer", f"{', '.join(unknown)} in cfg.json")
    layout = {"encoder.weight": "KD", "encoder.bias": "K", "W_dec": "KD", "b_dec": "D"}
    w = _shaped(_tensors(path / "sae.safetensors"), layout, path)
    coder = _top_k(w["encoder.weight"].T, w["encoder.bias"], cfg["k"], path, signed=bool(cfg.get("signed")))
    block = re.fullmatch(r"(?:layers|h)\.(\d+)", path.name)  # sparsify names the folder for the module
    hook = f"blocks.{block[1]}.hook_resid_post" if block else "unknown"
    return _Peer("topk", hook, w["W_dec"], w["b_dec"], coder)


# dictionary_learning

_LINES = {"encoder.weight": "KD", "encoder.bias": "K", "decoder.weight": "DK"}
_MATRICES = {"W_enc": "DK", "b_enc": "K", "W_dec": "KD", "b_dec": "D"}
_LEARNED = {
    "AutoEncoder": _LINES | {"bias": "D"},
    "AutoEncoderNew": _LINES | {"decoder.bias": "D"},
    "AutoEncoderTopK": _LINES | {"b_dec": "D"},
    "GatedAutoEncoder": {
        "encoder.weight": "KD", "r_mag": "K", "gate_bias": "K", "mag_bias": "K", "decoder.weight": "DK", "decoder_bias": "D",
    },
    "JumpReluAutoEncoder": _MATRICES | {"threshold": "K"},
    "BatchTopKSAE": _LINES | {"b_dec": "D", "threshold": ""},
    "MatryoshkaBatchTopKSAE": _MATRICES | {"threshold": "", "group_sizes": "G"},
}  # fmt: skip


def _dictionary_learning(path: Path) -> _Peer:
    trainer = _read_json(path / "config.json")["trainer"]
    name = trainer["dict_class"]
    _require(name in _LEARNED, path, f"a class of {', '.join(_LEARNED)}", repr(name))
    pickled = path / "ae.pt"
    tensors = _tensors(pickled if pickled.exists() else path / "ae.safetensors")
    sizes = {int(k) for k in (tensors.pop("k", None), trainer.get("k")) if k is not None}
    _require(len(sizes) < 2, path, "one k in weights and config.json", " and ".join(map(str, sorted(sizes))))
    if name == "AutoEncoderTopK":
        tensors.pop("threshold", None)  # an alternative that its encoder leaves unused
    w = _shaped(tensors, _LEARNED[name], path)
    W_enc = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    W_dec = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    b_dec = next(w[key] for key in ("b_dec", "bias", "decoder.bias", "decoder_bias") if key in w)
    coder: Coder
    if name == "GatedAutoEncoder":
        coder = GatedCoder(W_enc, w["gate_bias"], w["r_mag"], w["mag_bias"])
    else:
        b_enc = w["b_enc"] if "b_enc" in w else w["encoder.bias"]
        b_enc = _moved(b_enc, W_enc, b_dec, name not in ("AutoEncoderNew", "JumpReluAutoEncoder"))
        if name == "AutoEncoderTopK":
            coder = _top_k(W_enc, b_enc, sizes.pop() if sizes else None, path)
        else:
            coder = ThresholdCoder(W_enc, b_enc, np.zeros_like(b_enc) + w.get("threshold", np.float32(0)))
    residual = re.fullmatch(r"resid_post_layer_(\d+)", trainer.get("submodule_name") or "")
    hook = f"blocks.{residual[1]}.hook_resid_post" if residual else trainer.get("submodule_name")
    return _Peer(name, hook or "unknown", W_dec, b_dec, coder)


_READERS: dict[str, Callable[[Path], _Peer]] = {
    "saelens": _saelens,
    "sparsify": _sparsify,
    "dictionary_learning": _dictionary_learning,
}
_FILES = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "sparsify": ("cfg.json", "sae.safetensors"),
    "dictionary_learning": ("config.json", "ae.pt ae.safetensors"),
}


def _library(path: Path) -> str | None:
    """Whose files the folder holds; None if it holds none, or a dictionary of ours."""
    if (path / "config.yaml").exists():
        return None
    for library, (config, weights) in _FILES.items():
        if (path / config).is_file() and any((path / name).is_file() for name in weights.split()):
            return library
    return None


def _inside(path: Path) -> list[str]:
    return sorted(child.name for child in path.iterdir() if child.is_dir() and _library(child))


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _quiet_json(path: Path) -> dict[str, Any]:
    try:
        value = _read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The weights in a file, as float32; see ``load_foreign`` for how a pickle is read."""
    import torch
    from safetensors.torch import load_file

    pickled = path.suffix == ".pt"
    found = torch.load(path, map_location="cpu", weights_only=True) if pickled else load_file(path)
    return {name: tensor.detach().to(torch.float32).numpy() for name, tensor in found.items()}


def _shaped(tensors: Mapping[str, np.ndarray], layout: Mapping[str, str], path: Path) -> dict[str, np.ndarray]:
    """Exactly the tensors of ``layout``, finite, of shapes that agree on K (atoms) and D (coordinates)."""
    _require(
        tensors.keys() == layout.keys(), path, f"the tensors {', '.join(sorted(layout))}", ", ".join(sorted(tensors))
    )
    sizes: dict[str, int] = {}
    for name, axes in layout.items():
        shape = tensors[name].shape
        fits = len(shape) == len(axes) and all(sizes.setdefault(a, n) == n for a, n in zip(axes, shape, strict=True))
        _require(fits, path, f"{name} of shape ({', '.join(axes)}) with {sizes}", f"{shape}")
        _require(bool(np.isfinite(tensors[name]).all()), path, "finite weights", f"others in {name}")
    return dict(tensors)


def _moved(
    bias: Float[np.ndarray, " K"], W_enc: Float[np.ndarray, "D K"], b_dec: Float[np.ndarray, " D"], subtracted: bool
) -> Float[np.ndarray, " K"]:
    """The encoder's bias for inputs x − b_dec: as it is where the peer subtracts too, else with b_dec·W_enc added."""
    if subtracted:
        return bias
    return np.asarray(bias + b_dec.astype(np.float64) @ W_enc.astype(np.float64), dtype=np.float32)


def _top_k(W_enc: np.ndarray, b_enc: np.ndarray, k: Any, path: Path, *, signed: bool = False) -> TopKCoder:
    _require(isinstance(k, int) and 1 <= k <= len(b_enc), path, f"k from 1 to {len(b_enc)}", repr(k))
    return TopKCoder(np.ascontiguousarray(W_enc), b_enc, k, signed)


def _require(holds: bool, path: Path, expected: str, got: str) -> None:
    if not holds:
        raise AtomsFormatError(f"expected {expected} in {path}, got {got}")


# Ours as a SAELens folder
