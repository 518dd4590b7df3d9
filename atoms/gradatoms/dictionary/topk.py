"""TopK sparse autoencoders, with one dense product a step.

    z = (x − b_dec)·W_encᵀ + b_enc        S = the k atoms of largest z_a·‖W_dec[a]‖
    x̂ = b_dec + Σ_{a ∈ S} relu(z_a)·W_dec[a]
    loss = mean ‖x − x̂‖² + λ·min(n_dead / k_aux, 1)·mean ‖(x − x̂) − Σ_{a ∈ S_dead} z_a·W_dec[a]‖²

S_dead are the k_aux = d/2 dead atoms (not active in the last ``dead_steps`` steps) of largest z_a·‖W_dec[a]‖; the error that
they explain is taken as given. This is the loss and the selection of SAELens' TopK (Gao et al. 2024, appendix A.2), which
the tests follow step by step; gradients are clipped to norm 1 and Adam takes the step, as there.

Only x·W_encᵀ is dense, and it only has to choose: it runs in bfloat16 where the processor has that, and what was chosen is
computed again in float32. Everything else touches the k chosen atoms of each row (``topk_kernels.py``; ``topk_torch.py`` on
a GPU). Pushes have unit norm, so a coordinate is about 1/√d; training runs on √d·(p − μ), and the scale is folded back into
the weights, which TopK allows exactly.

With ``sharded`` each rank holds a part of the atoms and sees all rows: each chooses its own k, these are gathered, and the
k largest of all stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from gradatoms.dictionary import topk_kernels, topk_torch
from gradatoms.dictionary.base import NOISE, FitConfig, Learner, Solution
from gradatoms.dictionary.coding import TopKCoder
from gradatoms.dictionary.reduce import Reduce
from gradatoms.dictionary.schedule import schedule
from gradatoms.errors import ConfigError
from gradatoms.hooking import has_bfloat16

_RESAMPLED = 256
"""Dead atoms resampled a pass, at most."""


@dataclass(frozen=True, kw_only=True)
class TopKConfig(FitConfig):
    """Settings of a TopK sparse autoencoder."""

    method: ClassVar[str] = "topk"

    epochs: int = 100
    k: int = 8
    """Atoms kept a row."""
    lr: float = 1e-3
    """Adam's learning rate; rises over the first 5 % of the steps (50 at most), falls linearly to a tenth over the last fifth."""
    aux: float = 1.0
    """λ, the weight of the auxiliary loss through which dead atoms learn what is left unexplained."""
    dead_steps: int = 100
    """Steps without a row after which an atom counts as dead."""
    resample: bool = True
    """At the end of a pass, give dead atoms the directions of the rows that were explained worst."""
    init: Literal["rows", "random"] = "random"
    """First atoms: Gaussian directions, or pushes of the corpus (of which each may hold several true atoms)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder product; ``auto`` takes bfloat16 where the processor has it."""
    device: str = "cpu"
    sharded: bool = False
    """Divide the atoms among ranks instead of the rows; for dictionaries that do not fit in one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_k(self.k)
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"expected lr (a learning rate) above 0, got {self.lr}")
        if self.aux < 0 or self.dead_steps < 1:
            raise ConfigError(f"expected aux ≥ 0 and dead_steps ≥ 1, got {self.aux} and {self.dead_steps}")
        if self.init not in ("rows", "random") or self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(
                f"expected init rows or random and dtype auto, float32 or bfloat16, got {self.init!r} and {self.dtype!r}"
            )

    def learner(self, d: int, steps: int | None, reduce: Reduce) -> TopKLearner:
        return TopKLearner(self, d, steps, reduce)


class TopKLearner(Learner):
    """A TopK fit under way. Weights are (atoms, d), in one flat buffer with their gradients beside them."""

    def __init__(self, config: TopKConfig, d: int, steps: int | None, reduce: Reduce) -> None:
        self.config, self.d, self.steps, self.reduce = config, d, steps, reduce
        self.sharded = config.sharded
        self.rows = Reduce() if config.sharded else reduce  # what sums over ranks that have seen other rows
        self.parts = reduce if config.sharded else Reduce()  # what sums over ranks that hold other atoms
        self.mine = self.parts.share(config.n_atoms)
        n = len(self.mine)
        self.scale = float(np.sqrt(d))
        self.device = torch.device(config.device)
        bfloat16 = config.dtype == "bfloat16" or (config.dtype == "auto" and has_bfloat16(self.device.type))
        self.dtype = torch.bfloat16 if bfloat16 else torch.float32
        self.flat = torch.nn.Parameter(torch.zeros(2 * n * d + n + d, device=self.device))
        self.grad = self.flat.grad = torch.zeros_like(self.flat)
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = self._views(self.flat.data)
        self.g_enc, self.g_dec, self.g_bias, self.g_b_dec = self._views(self.grad)
        self.adam = torch.optim.Adam([self.flat], lr=config.lr, fused=True)
        self.since = torch.zeros(n, dtype=torch.int64, device=self.device)
        self.t = 0
        self.worst: tuple[Float[torch.Tensor, " R"], Float[torch.Tensor, "R D"]] | None = None

    def _views(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        n, d = len(self.mine), self.d
        enc, dec, bias, b_dec = flat.split([n * d, n * d, n, d])
        return enc.view(n, d), dec.view(n, d), bias, b_dec

    def begin(self, rows: Float[np.ndarray, "N D"]) -> None:
        """Atoms of norm 0.1 (SAELens' ``decoder_init_norm``); the encoder is the decoder."""
        rng, n = np.random.default_rng(self.config.seed), self.config.n_atoms
        first = rng.standard_normal((n, self.d))
        if self.config.init == "rows":
            chosen = rows[rng.choice(len(rows), n, replace=len(rows) < n)]
            chosen = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
            first = chosen + NOISE / self.scale * first
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        self.W_dec.copy_(torch.from_numpy(0.1 * first[self.mine]))
        self.W_enc.copy_(self.W_dec)

    @torch.no_grad()
    def step(self, X: Float[np.ndarray, "B D"], weights: Float[np.ndarray, " B"] | None = None) -> dict[str, float]:
        x_all = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32)).to(self.device) * self.scale
        n_rows = self.rows.total(len(X))
        w = torch.ones(len(X)) if weights is None else torch.from_numpy(np.asarray(weights, dtype=np.float32))
        share = (w.to(self.device) / n_rows)[:, None]  # a row's part of the mean
        self.grad.zero_()
        x = x_all - self.b_dec
        dead = self.since > self.config.dead_steps
        n_dead = int(self.parts.total(int(dead.sum()))) if self.config.aux else 0
        pre = self._product(x)
        index = self._choose(pre, self.config.k)
        code, out = self._decode(x, index, clip=True)
        self.parts.sum(out)
        error = out - x
        loss = self.rows.total(float((share * error.square()).sum()))
        self._learn(x, index, code, 2 * share * error)
        self.g_b_dec += 2 * (share * error).sum(dim=0) / self.parts.world
        fired = torch.zeros(len(self.mine), dtype=torch.int64, device=self.device)
        fired[index[(code > 0) & (index >= 0)].long()] = 1
        aux = self._auxiliary(x, pre, error, share, dead, n_dead) if n_dead else 0.0
        self.g_b_dec -= self.g_bias @ self.W_enc  # x stands for x − b_dec wherever the encoder sees it
        self.rows.sum(self.grad)
        self.parts.sum(self.g_b_dec)
        self.rows.max(fired)
        self._update()
        self.since = torch.where(fired > 0, 0, self.since + 1)
        self._remember(error, w)
        return {"loss": loss / self.d, "aux": aux / self.d, "dead": n_dead}

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """z·‖W_dec‖ of all atoms, for choosing."""
        norm = self.W_dec.norm(dim=1)
        W = (self.W_enc * norm[:, None]).to(self.dtype)
        return torch.addmm((self.b_enc * norm).to(self.dtype), x.to(self.dtype), W.T)

    def _choose(self, pre: torch.Tensor, k: int) -> Int[torch.Tensor, "B k"]:
        """The k largest of each row, among all ranks' atoms; −1 where a rank's were not among them."""
        index = self._largest(pre, min(k, pre.shape[1]))
        if self.parts.world == 1:
            return index
        value = pre.gather(1, index.long()).float()
        if index.shape[1] < k:  # a rank with fewer atoms than k
            missing = k - index.shape[1]
            index = torch.nn.functional.pad(index, (0, missing), value=-1)
            value = torch.nn.functional.pad(value, (0, missing), value=-torch.inf)
        every = self.parts.gather(value)
        winners = every.topk(k, dim=1).indices
        keep = torch.zeros_like(every, dtype=torch.bool).scatter_(1, winners, True)
        return torch.where(keep[:, self.parts.rank * k : (self.parts.rank + 1) * k], index, -1)

    def _largest(self, pre: torch.Tensor, k: int) -> torch.Tensor:
        if self.device.type != "cpu":
            return pre.topk(k, dim=1, sorted=False).indices.int()
        index = torch.empty(len(pre), k, dtype=torch.int32)
        if index.numel() == 0:  # a rank without a dead atom, or without a row
            return index
        bits = pre.view(torch.int16) if pre.dtype == torch.bfloat16 else pre
        topk_kernels.largest(bits.numpy(), k, index.numpy())
        return index

    def _decode(self, x: torch.Tensor, index: torch.Tensor, *, clip: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if self.device.type != "cpu":
            return topk_torch.decode(x, index, self.W_enc, self.b_enc, self.W_dec, clip=clip)
        code, out = torch.empty(index.shape), torch.empty_like(x)
        topk_kernels.decode(
            x.numpy(), index.numpy(), self.W_enc.numpy(), self.b_enc.numpy(), self.W_dec.numpy(), clip, code.numpy(), out.numpy()
        )  # fmt: skip
        return code, out

    def _learn(self, x: torch.Tensor, index: torch.Tensor, code: torch.Tensor, d_out: torch.Tensor) -> None:
        """Add the gradients of a loss whose gradient in x̂ is ``d_out``."""
        if self.device.type != "cpu":
            d_code = topk_torch.pull_back(d_out, index, code, self.W_dec)
            topk_torch.accumulate(x, d_out, index, code, d_code, self.g_enc, self.g_bias, self.g_dec)
            return
        d_code = torch.empty_like(code)
        topk_kernels.pull_back(d_out.numpy(), index.numpy(), code.numpy(), self.W_dec.numpy(), d_code.numpy())
        start, entry = topk_kernels.by_atom(index.numpy(), code.numpy(), len(self.mine))
        topk_kernels.accumulate(
            x.numpy(), d_out.numpy(), code.numpy(), d_code.numpy(), start, entry,
            self.g_enc.numpy(), self.g_bias.numpy(), self.g_dec.numpy(),
        )  # fmt: skip

    def _auxiliary(
        self,
        x: torch.Tensor,
        pre: torch.Tensor,
        error: torch.Tensor,
        share: torch.Tensor,
        dead: torch.Tensor,
        n_dead: int,
    ) -> float:
        """Add the gradients of the auxiliary loss, and return it."""
        k_aux = max(1, self.d // 2)
        factor = self.config.aux * min(n_dead / k_aux, 1.0)
        chosen = torch.nonzero(dead)[:, 0]
        local = self._choose(pre[:, chosen].float(), min(k_aux, n_dead))  # float: negatives count here
        index = torch.where(local >= 0, chosen.int()[local.clamp_min(0).long()] if len(chosen) else -1, -1).int()
        code, out = self._decode(x, index, clip=False)
        self.parts.sum(out)
        left = out + error  # error is x̂ − x: what is left is −error, and ``out`` should be that
        self._learn(x, index, code, 2 * factor * share * left)
        return factor * self.rows.total(float((share * left.square()).sum()))

    def _update(self) -> None:
        grad = self.grad
        square = grad.square().sum() if self.parts.world == 1 else self._square_over_parts(grad)
        norm = float(square.sqrt())
        if norm > 1:
            grad *= 1 / (norm + 1e-6)
        self.adam.param_groups[0]["lr"] = self.config.lr * schedule(self.t, self.steps)
        self.adam.step()
        self.t += 1

    def _square_over_parts(self, grad: torch.Tensor) -> torch.Tensor:
        weights = grad[: -self.d].square().sum()
        self.parts.sum(weights)
        return weights + self.g_b_dec.square().sum()

    def _remember(self, error: torch.Tensor, w: torch.Tensor) -> None:
        """Keep the rows of this pass that were explained worst, for atoms that die."""
        if self.config.resample and len(error):
            size = error.norm(dim=1) * w.to(error.device)
            top = size.topk(min(self._most_resampled, len(size))).indices
            size, rows = size[top], -error[top]
            if self.worst is not None:
                size, rows = torch.cat([self.worst[0], size]), torch.cat([self.worst[1], rows])
                keep = size.topk(min(self._most_resampled, len(size))).indices
                size, rows = size[keep], rows[keep]
            self.worst = (size, rows)

    @property
    def _most_resampled(self) -> int:
        return min(self.config.n_atoms, _RESAMPLED)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Resample dead atoms (as Bricken et al. 2023): the direction of a row that was explained badly, a small encoder."""
        last = self.steps is not None and self.t > 0.8 * self.steps
        if self.config.resample and not last:
            size, rows = self.worst or (torch.zeros(0), torch.zeros(0, self.d))
            _, found = self.rows.largest(size.cpu().numpy(), rows.cpu().numpy(), self._most_resampled)
            dead = torch.nonzero(self.since > self.config.dead_steps)[:, 0]
            before = self.parts.before(len(dead))  # atoms of other ranks take the rows before
            mine = torch.from_numpy(found[before : before + len(dead)]).to(self.device)
            self._give(dead[: len(mine)], mine)
        self.worst = None

    def _give(self, atoms: torch.Tensor, rows: torch.Tensor) -> None:
        """New directions for ``atoms``, and an optimiser that has not seen them."""
        alive = self.since <= self.config.dead_steps
        n_alive = self.parts.total(int(alive.sum()))
        size = self.parts.total(float(self.W_enc[alive].norm(dim=1).sum())) / n_alive if n_alive else 0.1
        length = self.parts.total(float(self.W_dec.norm(dim=1).sum())) / self.config.n_atoms
        unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.W_dec[atoms] = unit * length
        self.W_enc[atoms] = unit * 0.2 * size
        self.b_enc[atoms] = 0
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in self.adam.state[self.flat]:
                enc, dec, bias, _ = self._views(self.adam.state[self.flat][moment])
                enc[atoms], dec[atoms], bias[atoms] = 0.0, 0.0, 0.0
        self.since[atoms] = 0

    def state(self) -> dict[str, np.ndarray]:
        held = {"flat": self.flat.data, "since": self.since, "t": torch.tensor([self.t])}
        moments = self.adam.state.get(self.flat, {})
        held |= {name: torch.as_tensor(value).reshape(-1) for name, value in moments.items()}
        if self.worst is not None:
            held |= {"worst_size": self.worst[0], "worst_rows": self.worst[1]}
        return {name: value.detach().cpu().numpy().copy() for name, value in held.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        held = {name: torch.from_numpy(value.copy()).to(self.device) for name, value in state.items()}
        self.flat.data.copy_(held["flat"])
        self.since, self.t = held["since"], int(held["t"][0])
        if "exp_avg" in held:
            self.adam.state[self.flat] = {
                "step": held["step"][0].clone(), "exp_avg": held["exp_avg"], "exp_avg_sq": held["exp_avg_sq"]
            }  # fmt: skip
        self.worst = (held["worst_size"], held["worst_rows"]) if "worst_size" in held else None

    @torch.no_grad()
    def solution(self) -> Solution:
        norm = self.W_dec.norm(dim=1).clamp_min(1e-12)
        W_dec, W_enc = self._whole(self.W_dec / norm[:, None]), self._whole(self.W_enc * norm[:, None])
        b_enc = self._whole((self.b_enc * norm / self.scale)[:, None])[:, 0]
        coder = TopKCoder(np.ascontiguousarray(W_enc.T), np.ascontiguousarray(b_enc), self.config.k)
        return Solution(W_dec, (self.b_dec / self.scale).cpu().numpy().copy(), coder)

    def _whole(self, part: torch.Tensor) -> np.ndarray:
        """The rows of all ranks' atoms."""
        whole = np.zeros((self.config.n_atoms, part.shape[1]), np.float32)
        whole[self.mine] = part.cpu().numpy()
        self.parts.sum(whole)
        return whole
