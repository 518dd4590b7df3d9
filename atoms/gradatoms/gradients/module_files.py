"""Some tensors of each of some modules in one safetensors file, with JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gradatoms.errors import AtomsFormatError
from gradatoms.files import save_whole


def save_modules(path: Path, kind: str, parts: Sequence[dict[str, torch.Tensor]], about: dict[str, Any]) -> None:
    """Write the tensors of each module, whole or not at all; ``about`` goes into the metadata under ``kind``."""
    tensors = {f"{i}.{key}": tensor.contiguous() for i, part in enumerate(parts) for key, tensor in part.items()}
    metadata = {"format": "pt", kind: json.dumps(about)}
    save_whole(path, lambda partial: save_file(tensors, partial, metadata=metadata))


def load_modules(path: Path, kind: str, keys: Sequence[str]) -> tuple[list[dict[str, torch.Tensor]], dict[str, Any]]:
    """What ``save_modules`` wrote: the tensors of each of ``about["modules"]``, and ``about``.

    Raises:
        AtomsFormatError: not there, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(json.loads((file.metadata() or {})[kind]))
            parts = [{key: file.get_tensor(f"{i}.{key}") for key in keys} for i in range(len(about["modules"]))]
        return parts, about
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise AtomsFormatError(
            f"expected a {kind} of weight gradients at {path}, got {type(error).__name__}: {error}; harvest again"
        ) from error
