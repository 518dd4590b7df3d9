"""The features of a public sparse autoencoder that point where atoms do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open

from gradatoms.dictionary.base import Atoms
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.labels.label import load_labels

RANDOM = 256
"""Random directions that the null is of."""
_CELLS = 2**23
"""Numbers held at once: rows of features, and their products with all directions."""


def nearest_features(
    atoms: Atoms, sae_path: str | Path, k: int = 5, *, any_hook: bool = False, seed: int = 0
) -> dict[str, Any]:
    """The ``k`` features whose decoder rows have the largest cosine with each atom.

    The null is what the best of so many features reaches by chance: max_f cos(v, W_dec[f]) for random unit directions v
    (Gaussian). Residual streams have directions that much of what is learned there shares, so a cosine somewhat above
    the null is not yet the same feature. The cosine has a sign: +atom is the push that lowers a loss, +feature is what
    is active.

    The features are read in chunks: memory does not grow with them.

    Args:
        sae_path: a safetensors file with ``W_dec`` (features, d), or a SAELens folder (``sae_weights.safetensors``).
            Its hook is that of ``cfg.json`` or of the file's metadata. A file that names no hook is not refused.
        any_hook: compare with a dictionary of another hook too.
        seed: of the random directions.

    Returns:
        ``hook``; ``sae`` (``path``, ``hook``, ``model``, ``features``, ``d``; None where it does not say); ``null``
        (``mean``, ``p95``, ``n``); ``above_null`` (atoms whose best cosine is above ``p95``); ``atoms``: for each
        ``atom``, ``label`` and ``nearest`` (``feature``, ``cosine``, best first).

    Raises:
        ConfigError: ``k`` below 1, another width, or another hook without ``any_hook``.
        AtomsFormatError: no dictionary at ``sae_path``, or a damaged one.
    """
    if k < 1:
        raise ConfigError(f"expected k of at least 1, got {k}")
    with _opened(Path(sae_path)) as (file, weights):
        described = _described(file, weights)
        features, d = _shape(file, weights)
        if d != atoms.W_dec.shape[1]:
            raise ConfigError(f"expected features of width {atoms.W_dec.shape[1]}, {weights} has {d}; name another")
        hook = described["hook"]
        if hook is not None and _place(hook) != _place(atoms.hook) and not any_hook:
            raise ConfigError(
                f"expected features at {atoms.hook}, {weights} is of {hook}; name another, or compare with --any-hook"
            )
        noise = np.random.default_rng(seed).standard_normal((RANDOM, d)).astype(np.float32)
        directions = _unit(np.concatenate([atoms.W_dec, noise]))
        cosines, numbers = _best(directions, _chunks(file, weights, features, d + len(directions)), min(k, features))
    best, null = cosines[: len(atoms), 0], cosines[len(atoms) :, 0]
    labels = load_labels(atoms.path) if atoms.path else {}
    found = [
        {
            "atom": n,
            "label": labels[n].label if n in labels else "",
            "nearest": [{"feature": int(f), "cosine": float(c)} for f, c in zip(numbers[n], cosines[n], strict=True)],
        }
        for n in range(len(atoms))
    ]
    p95 = float(np.quantile(null, 0.95))
    return {
        "hook": atoms.hook,
        "sae": {"path": str(sae_path), **described, "features": features, "d": d},
        "null": {"mean": float(null.mean()), "p95": p95, "n": RANDOM},
        "above_null": int((best > p95).sum()),
        "atoms": found,
    }


def _best(
    directions: Float[np.ndarray, "N D"], chunks: Iterator[Float[np.ndarray, "_ D"]], k: int
) -> tuple[Float[np.ndarray, "N k"], Int[np.ndarray, "N k"]]:
    """The ``k`` largest cosines of each direction over all chunks, best first, and whose they are."""
    cosines = np.full((len(directions), k), -np.inf, np.float32)
    numbers, start = np.zeros((len(directions), k), np.int64), 0
    for rows in chunks:
        products = directions @ _unit(rows).T
        some = np.argpartition(-products, min(k, len(rows)) - 1, axis=1)[:, :k]
        both = np.hstack([cosines, np.take_along_axis(products, some, axis=1)])
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        numbers = np.take_along_axis(np.hstack([numbers, some + start]), order, axis=1)
        cosines, start = np.take_along_axis(both, order, axis=1), start + len(rows)
    return cosines, numbers


def _unit(rows: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Rows of norm 1; a zero row stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Path]]:
    """The weights at ``path`` as an open safetensors file, and where they are."""
    weights = path / "sae_weights.safetensors" if path.is_dir() else path
    if not weights.is_file():
        raise AtomsFormatError(
            f"expected a safetensors file with W_dec, or a SAELens folder, found nothing at {weights}; check --sae"
        )
    try:
        with safe_open(weights, framework="pt") as file:  # numpy has no bfloat16
            yield file, weights
    except (SafetensorError, OSError) as error:
        raise AtomsFormatError(
            f"expected a safetensors file at {weights}, got {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _shape(file: Any, weights: Path) -> tuple[int, int]:
    names = list(file.keys())
    shape = tuple(file.get_slice("W_dec").get_shape()) if "W_dec" in names else ()
    if len(shape) != 2 or 0 in shape:
        got = f"W_dec of shape {shape}" if "W_dec" in names else f"the tensors {', '.join(sorted(names)[:8])}"
        raise AtomsFormatError(f"expected W_dec of shape (features, d) in {weights}, got {got}")
    return shape


def _chunks(file: Any, weights: Path, features: int, row_cells: int) -> Iterator[Float[np.ndarray, "_ D"]]:
    import torch

    rows, size = file.get_slice("W_dec"), max(1, _CELLS // row_cells)
    for start in range(0, features, size):
        chunk = rows[start : min(start + size, features)].to(torch.float32).numpy()
        if not np.isfinite(chunk).all():
            raise AtomsFormatError(f"expected finite weights in {weights}, got others in W_dec")
        yield chunk


def _described(file: Any, weights: Path) -> dict[str, str | None]:
    """Hook and model that ``cfg.json`` beside the weights names, or the file's metadata; None where neither does."""
    config = weights.with_name("cfg.json")
    try:
        cfg = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        inner = cfg.get("metadata") or {}
        places = (inner, cfg, file.metadata() or {})
        names = {"hook": ("hook_name", "hook_point", "hook"), "model": ("model_name", "model")}
        return {
            what: next((str(p[key]) for p in places for key in keys if p.get(key)), None)
            for what, keys in names.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise AtomsFormatError(
            f"expected SAELens' cfg.json at {config}, got {type(error).__name__}: {error}"
        ) from error


def _place(hook: str) -> str:
    """The hook; what goes into a block is what comes out of the one before."""
    before = re.fullmatch(r"blocks\.([1-9]\d*)\.hook_resid_pre", hook)
    return f"blocks.{int(before[1]) - 1}.hook_resid_post" if before else hook
