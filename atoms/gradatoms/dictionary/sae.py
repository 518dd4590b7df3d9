"""Sparse autoencoders that SAELens implements, trained on pushes by its own forward passes and losses.

The loop is SAELens' trainer in short: loss, gradient clipped to norm 1, Adam, a linear warm-up and decay. It is ours so that
batches come from a gradient store, a fit can be put down and taken up to the same bytes, and no pickle is written. Training
runs on √d·(p − μ), where a coordinate is about 1; the scale is folded into the weights afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from gradatoms.dictionary.base import FitConfig, Learner, Solution
from gradatoms.dictionary.coding import Coder, GatedCoder, PursuitCoder, ThresholdCoder, TopKCoder
from gradatoms.dictionary.reduce import Reduce
from gradatoms.dictionary.schedule import schedule
from gradatoms.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SAEConfig(FitConfig):
    """Settings that the architectures of SAELens share."""

    epochs: int = 100
    lr: float = 1e-3
    """Adam's learning rate; rises over the first 5 % of the steps (50 at most), falls linearly to a tenth over the last fifth."""
    dead_steps: int = 100
    """Steps without a row after which an atom counts as dead, where the architecture looks after dead atoms."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lr < float("inf") or self.dead_steps < 1:
            raise ConfigError(
                f"expected lr (a learning rate) above 0 and dead_steps ≥ 1, got {self.lr} and {self.dead_steps}"
            )

    def settings(self) -> dict[str, Any]:
        """What SAELens' config of this architecture takes beside its sizes."""
        return {}

    def learner(self, d: int, steps: int | None, reduce: Reduce) -> SAELearner:
        return SAELearner(self, d, steps, reduce)


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(SAEConfig):
    """k atoms a row on average over a batch; codes are those above a threshold learned on the way (Bussmann et al. 2024)."""

    method: ClassVar[str] = "batchtopk"

    k: int = 8
    """Atoms a row, on average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_k(self.k)

    def settings(self) -> dict[str, Any]:
        return {"k": float(self.k)}


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchTopKConfig):
    """BatchTopK whose first atoms must explain pushes alone as well as together with the rest (Bussmann et al. 2025)."""

    method: ClassVar[str] = "matryoshka"

    widths: tuple[int, ...] = field(default=())
    """Numbers of atoms that must do alone; an eighth, a quarter and a half of all unless told."""

    def settings(self) -> dict[str, Any]:
        widths = [*self.widths] or [max(1, self.n_atoms // part) for part in (8, 4, 2)]
        return super().settings() | {"matryoshka_widths": sorted({*widths, self.n_atoms})}


@dataclass(frozen=True, kw_only=True)
class AbsTopKConfig(SAEConfig):
    """The k atoms of largest weight in size, either sign: the one autoencoder with signed codes."""

    method: ClassVar[str] = "abstopk"

    k: int = 8
    """Atoms kept a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_k(self.k)

    def settings(self) -> dict[str, Any]:
        return {"k": self.k}


@dataclass(frozen=True, kw_only=True)
class StandardConfig(SAEConfig):
    """ReLU with an L1 penalty (Bricken et al. 2023)."""

    method: ClassVar[str] = "standard"

    l1: float = 5.0
    """Weight of the penalty; larger gives fewer atoms a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.l1 > 0:
            raise ConfigError(f"expected l1 above 0, got {self.l1}")

    def settings(self) -> dict[str, Any]:
        return {"l1_coefficient": self.l1}


@dataclass(frozen=True, kw_only=True)
class GatedConfig(StandardConfig):
    """One branch opens atoms, another gives their weight, so that the L1 penalty does not shrink it (Rajamanoharan et al. 2024)."""

    method: ClassVar[str] = "gated"


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(SAEConfig):
    """A threshold an atom, trained through a straight-through estimator and an L0 penalty (Rajamanoharan et al. 2024)."""

    method: ClassVar[str] = "jumprelu"

    l0: float = 2.0
    """Weight of the penalty; larger gives fewer atoms a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.l0 > 0:
            raise ConfigError(f"expected l0 above 0, got {self.l0}")

    def settings(self) -> dict[str, Any]:
        return {"l0_coefficient": self.l0}


@dataclass(frozen=True, kw_only=True)
class MatchingPursuitConfig(SAEConfig):
    """Codes by matching pursuit over atoms that are trained through it (Costa et al. 2025)."""

    method: ClassVar[str] = "matching_pursuit"

    k: int = 8
    """Steps of the pursuit, so atoms a row at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_k(self.k)

    def settings(self) -> dict[str, Any]:
        return {
            "max_iterations": self.k, "residual_threshold": 0.0, "stop_on_duplicate_support": False, "decoder_init_norm": 1.0
        }  # fmt: skip


class SAELearner(Learner):
    """A SAELens architecture under way."""

    def __init__(self, config: SAEConfig, d: int, steps: int | None, reduce: Reduce) -> None:
        from sae_lens import registry
        from sae_lens.saes.sae import TrainCoefficientConfig

        self.config, self.d, self.steps, self.reduce = config, d, steps, reduce
        self.scale = float(np.sqrt(d))
        sae_class, config_class = registry.get_sae_training_class(_SAELENS.get(config.method, config.method))
        torch.manual_seed(config.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.sae = sae_class(config_class(d_in=d, d_sae=config.n_atoms, device=config.device, **config.settings()))
        self.coefficients = {
            name: c if isinstance(c, TrainCoefficientConfig) else TrainCoefficientConfig(value=c, warm_up_steps=0)
            for name, c in self.sae.get_coefficients().items()
        }
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=config.lr)
        self.since = torch.zeros(config.n_atoms, dtype=torch.int64, device=config.device)
        self.t = 0

    def begin(self, rows: Float[np.ndarray, "N D"]) -> None:
        """SAELens' own first weights, by the seed."""

    def step(self, X: Float[np.ndarray, "B D"], weights: Float[np.ndarray, " B"] | None = None) -> dict[str, float]:
        """One step of SAELens' loss. It takes no weights: rows are drawn from the batch in proportion to them."""
        from sae_lens.saes.sae import TrainStepInput

        if weights is not None and len(X):
            rng = np.random.default_rng([self.config.seed, self.t])
            upto = np.cumsum(weights, dtype=np.float64)
            X = X[np.searchsorted(upto / upto[-1], (np.arange(len(X)) + rng.random()) / len(X))]
        x = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32)).to(self.config.device) * self.scale
        share = len(X) / self.reduce.total(len(X))
        coefficients = {
            name: c.value * min(1.0, (self.t + 1) / c.warm_up_steps if c.warm_up_steps else 1.0)
            for name, c in self.coefficients.items()
        }
        self.sae.train()
        self.adam.zero_grad()
        loss, fired = torch.zeros(1), torch.zeros_like(self.since)
        if len(x):
            output = self.sae.training_forward_pass(
                TrainStepInput(
                    sae_in=x, coefficients=coefficients, dead_neuron_mask=self.since > self.config.dead_steps,
                    n_training_steps=self.t, is_logging_step=False,
                )
            )  # fmt: skip
            (output.loss * share).backward()
            fired = (output.feature_acts.detach() != 0).any(dim=0).long()
            loss = output.losses["mse_loss"].detach().reshape(1).cpu() * share
        with torch.no_grad():
            for p in self.sae.parameters():
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                self.reduce.sum(p.grad)
        self.reduce.max(fired)
        self.reduce.sum(loss)
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.adam.param_groups[0]["lr"] = self.config.lr * schedule(self.t, self.steps)
        self.adam.step()
        if isinstance(self.config, MatchingPursuitConfig):  # an atom can take its whole pull only if it is of norm 1
            with torch.no_grad():
                self.sae.W_dec /= self.sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.since = torch.where(fired > 0, 0, self.since + 1)
        self.t += 1
        return {"loss": float(loss) / self.d, "dead": int((self.since > self.config.dead_steps).sum())}

    def state(self) -> dict[str, np.ndarray]:
        held = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        for number, moments in self.adam.state_dict()["state"].items():
            held |= {f"adam.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        arrays = {name: value.detach().cpu().numpy().copy() for name, value in held.items()}
        return arrays | {"since": self.since.cpu().numpy().copy(), "t": np.asarray([self.t])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        held = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        self.sae.load_state_dict({n.removeprefix("sae."): v for n, v in held.items() if n.startswith("sae.")})
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in held.items():
            if name.startswith("adam."):
                _, number, moment = name.split(".")
                moments.setdefault(int(number), {})[moment] = value
        self.adam.load_state_dict({"state": moments, "param_groups": self.adam.state_dict()["param_groups"]})
        self.since, self.t = held["since"].to(self.config.device), int(held["t"][0])

    @torch.no_grad()
    def solution(self) -> Solution:
        """Unit atoms, with their norms moved into the encoder, and codes in the units of pushes."""
        weights = {name: value.detach().cpu().numpy() for name, value in self.sae.state_dict().items()}
        norm = np.maximum(np.linalg.norm(weights["W_dec"], axis=1), 1e-12)
        bias = weights["b_dec"] / self.scale
        return Solution(weights["W_dec"] / norm[:, None], bias, coder_of(self.config, weights, norm, self.scale))


_SAELENS = {"matryoshka": "matryoshka_batchtopk"}
"""SAELens' name of an architecture where it differs."""


def coder_of(config: SAEConfig, weights: Mapping[str, np.ndarray], norm: np.ndarray, scale: float) -> Coder:
    """The coder that gives SAELens' codes for unscaled rows, times the norms of its atoms."""
    if isinstance(config, MatchingPursuitConfig):
        return PursuitCoder(weights["W_dec"] / norm[:, None], config.k)
    W_enc = np.ascontiguousarray(weights["W_enc"] * norm)
    if isinstance(config, GatedConfig):
        # the gate is open where x·W_enc + b_gate > 0; both sides times the norm, the weight over the scale
        return GatedCoder(W_enc, weights["b_gate"] * norm / scale, weights["r_mag"], weights["b_mag"] * norm / scale)
    b_enc = weights["b_enc"] * norm / scale
    if isinstance(config, BatchTopKConfig):  # trained on z·norm, so the threshold is in those units already
        return ThresholdCoder(W_enc, b_enc, np.full(len(norm), float(weights["topk_threshold"]) / scale, np.float32))
    if isinstance(config, JumpReLUConfig):
        threshold = np.exp(weights["log_threshold"]) if "log_threshold" in weights else weights["threshold"]
        return ThresholdCoder(W_enc, b_enc, (threshold * norm / scale).astype(np.float32))
    if isinstance(config, AbsTopKConfig):
        return TopKCoder(W_enc, b_enc, config.k, signed=True)
    return ThresholdCoder(W_enc, b_enc, np.zeros(len(norm), np.float32))
