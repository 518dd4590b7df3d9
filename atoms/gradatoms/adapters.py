"""A step of the weights as a LoRA adapter that peft and vLLM load.

For modules of the base model the step Δ = α‖W‖ v is cut to its largest singular values: B A with B (d_out, r), A (r, d_in), of one
rank r for all modules (smaller ones are filled up with zeros, since vLLM takes one rank). Steps of an adapter's own A and B give
that adapter again, with the step in it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gradatoms.errors import ConfigError, OutputExistsError
from gradatoms.gradients.linear import LORA
from gradatoms.models import LoadedModel
from gradatoms.weight_steps import WeightStep, applied_step, sites_of, weight_norm

RANK = 64
"""Most rank of an adapter."""
_PREFIX = "base_model.model."
_NEGLIGIBLE = 1e-5
"""Singular values below this share of the largest are rounding."""


def export_adapter(
    loaded: LoadedModel, step: WeightStep, alpha: float | int, out: str | Path, *, rank: int = RANK
) -> dict[str, Any]:
    """Write a PEFT adapter folder.

    Args:
        alpha: strength in units of ‖W‖; its sign counts.
        rank: most rank.

    Returns:
        ``path``, ``rank``, ``kept`` (the share of ‖Δ‖² that the rank holds), ``note``.

    Raises:
        OutputExistsError: ``out`` exists; ConfigError: rank below 1, or a step of base and adapter together.
    """
    out = Path(out)
    if out.exists():
        raise OutputExistsError(f"expected a new path, {out} exists; choose another or remove it")
    if rank < 1:
        raise ConfigError(f"expected a rank of at least 1, got {rank}")
    of_adapter = [bool(LORA.search(name)) for name in step.parts]
    if any(of_adapter) and not all(of_adapter):
        raise ConfigError(
            "expected a step of the base model or of its adapter, got both; choose --modules of one of them"
        )
    if all(of_adapter):
        tensors, config = _adapter_again(loaded, step, alpha)
        r, kept = int(config["r"]), 1.0
    else:
        tensors, r, kept = _low_rank(loaded, step, alpha, rank)
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": r, "lora_dropout": 0.0, "bias": "none",
            "target_modules": sorted(step.parts), "base_model_name_or_path": _base(loaded), "inference_mode": True,
            "fan_in_fan_out": _is_conv1d(loaded, step), "modules_to_save": None, "use_rslora": False, "use_dora": False,
        }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    note = f"rank {r}, {kept:.1%} of the step's square; load it with peft, or vLLM's --lora-modules"
    return {"path": str(out), "rank": r, "kept": kept, "note": note}


def _low_rank(
    loaded: LoadedModel, step: WeightStep, alpha: float | int, rank: int
) -> tuple[dict[str, torch.Tensor], int, float]:
    scale = float(alpha) * weight_norm(sites_of(loaded, list(step.parts)))
    found = {name: torch.linalg.svd(part, full_matrices=False) for name, part in step.parts.items()}
    most = max(float(s[0]) for _, s, _ in found.values())
    needed = max(int((s > _NEGLIGIBLE * most).sum()) for _, s, _ in found.values())
    r = max(1, min(rank, needed))
    tensors, total, kept = {}, 0.0, 0.0
    for name, (U, s, Vh) in found.items():
        total, kept = total + float(s.square().sum()), kept + float(s[:r].square().sum())
        root = s[:r].sqrt() * abs(scale) ** 0.5
        B, A = torch.zeros(len(U), r), torch.zeros(r, Vh.shape[1])
        B[:, : len(root)] = U[:, :r] * root * (1.0 if scale >= 0 else -1.0)
        A[: len(root)] = root[:, None] * Vh[:r]
        tensors[f"{_PREFIX}{name}.lora_A.weight"], tensors[f"{_PREFIX}{name}.lora_B.weight"] = (
            A.contiguous(),
            B.contiguous(),
        )
    return tensors, r, kept / total


def _adapter_again(
    loaded: LoadedModel, step: WeightStep, alpha: float | int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The adapter on the model, with the step in it."""
    from peft import LoraConfig

    configs = loaded.model.peft_config
    adapter = next(iter(step.parts)).rsplit(".", 1)[1]
    config = configs[adapter]
    assert isinstance(config, LoraConfig)
    with applied_step(loaded, step, alpha):
        tensors = {
            _PREFIX + name.replace(f".{adapter}.weight", ".weight"): value.detach().clone().contiguous()
            for name, value in loaded.model.named_parameters()
            if LORA.search(name) and name.endswith(f".{adapter}.weight")
        }
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return tensors, json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))


def _base(loaded: LoadedModel) -> str:
    return str(getattr(loaded.model.config, "_name_or_path", "") or loaded.fingerprint.name)


def _is_conv1d(loaded: LoadedModel, step: WeightStep) -> bool:
    site = sites_of(loaded, list(step.parts)[:1])[0]
    return type(site.module).__name__ == "Conv1D"
