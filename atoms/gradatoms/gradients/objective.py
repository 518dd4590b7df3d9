"""J and ∂J/∂h at the output projection, without ever holding the logits of the whole vocabulary.

With final hidden states h (P, D), projection z = s·(W h + b), terms (t, v, w) and c_t = Σ w over the terms at t:

    log-probabilities   J_t = c_t · logsumexp(z_t) − Σ w · z_tv        ∂J_t/∂h = s · (c_t · E_p[W] − Σ w · W_v)
    logits              J_t = −Σ w · z_tv                              ∂J_t/∂h = −s · Σ w · W_v
    second model q      J_t = KL(q ‖ p)                                ∂J_t/∂h = s · (E_p[W] − E_q[W])

E_p[W] = Σ_v p_v W_v is accumulated over pieces of the vocabulary together with a running maximum and sum of
exponentials (the online softmax of Milakov and Gimelshein, arXiv 1805.02867), so that one product with W goes forward,
one back, and memory holds P × piece numbers. A model whose logits are not such a product of its ``lm_head`` (Gemma 2
bends them) goes the plain way: whole logits, positions cut into pieces, autograd.

Legend: P predicted positions, D width, V vocabulary, T terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn import functional as F

from gradatoms.hooking import edit_input
from gradatoms.models import LoadedModel

PIECE = 2**22
"""Most logits held at once."""


@dataclass(frozen=True)
class Terms:
    """What J is made of: see the module."""

    at_T: Int[torch.Tensor, " T"]
    token_T: Int[torch.Tensor, " T"]
    weight_T: Float[torch.Tensor, " T"]
    matched_P: Int[torch.Tensor, " P"]
    logit: bool

    def to(self, device: torch.device) -> Terms:
        at, token, weight, matched = (x.to(device) for x in (self.at_T, self.token_T, self.weight_T, self.matched_P))
        return Terms(at, token, weight, matched, self.logit)


@dataclass(frozen=True)
class Projection:
    """An output projection whose logits are z = scale · (W h + b)."""

    weight: Float[torch.Tensor, "V D"]
    bias: Float[torch.Tensor, " V"] | None
    scale: float

    @classmethod
    def of(cls, head: nn.Module, scale: float, dtype: torch.dtype | None) -> Projection:
        """The projection as it is now, in ``dtype`` if given; of a divided model it is whole only during a pass."""
        assert isinstance(head, nn.Linear)
        weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
        if dtype is None:
            return cls(weight, bias, scale)
        return cls(weight.to(dtype), None if bias is None else bias.to(dtype), scale)

    def logits(self, h_PD: Float[torch.Tensor, "P D"], low: int, high: int) -> Float[torch.Tensor, "P C"]:
        """Logits of tokens ``low`` to ``high``, float32; the product in the dtype of autocast, where that is on."""
        bias = None if self.bias is None else self.bias[low:high]
        return F.linear(h_PD.to(self.weight.dtype), self.weight[low:high], bias).float() * self.scale

    @torch.no_grad()
    def sample(self, h_PD: Float[torch.Tensor, "P D"], generator: torch.Generator) -> Int[torch.Tensor, " P"]:
        """A token for each position, drawn from softmax(z): the largest of z plus Gumbel noise, a piece at a time."""
        best = torch.full((len(h_PD),), -torch.inf, device=h_PD.device)
        token = torch.zeros(len(h_PD), dtype=torch.long, device=h_PD.device)
        step = self.step(len(h_PD))
        for low in self.steps(len(h_PD)):
            z = self.logits(h_PD, low, low + step)
            noise = torch.empty_like(z).exponential_(generator=generator).log_().neg_()
            value, index = (z + noise).max(dim=1)
            token = torch.where(value > best, index + low, token)
            best = torch.maximum(best, value)
        return token

    def steps(self, positions: int) -> range:
        """Starts of the pieces of the vocabulary."""
        return range(0, len(self.weight), self.step(positions))

    @staticmethod
    def step(positions: int) -> int:
        return max(256, PIECE // max(1, positions))


@torch.no_grad()
def projection_scale(loaded: LoadedModel) -> float | None:
    """How many times what its ``lm_head`` gives the model's logits are, None where they are no multiple; measured."""
    head = loaded.model.get_output_embeddings()
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return None
    plain: list[torch.Tensor] = []

    def product(h: torch.Tensor) -> torch.Tensor:
        if type(head.weight.data) is torch.Tensor and not head.weight.is_meta and h.shape[-1] == head.in_features:
            plain.append(F.linear(h, head.weight, head.bias).reshape(3, -1).float())
        return h

    ids = torch.arange(1, 4, device=loaded.device)[None] % loaded.fingerprint.vocab_size
    with edit_input(head, product):
        found = loaded.model(input_ids=ids, use_cache=False).logits.reshape(3, -1).float()
    if not plain or found.shape != plain[0].shape:
        return None
    z = plain[0].to(found.device)
    scale = float((found * z).sum() / (z * z).sum().clamp_min(1e-30))
    scale = 1.0 if abs(scale - 1) < 1e-3 else scale
    tolerance = (1e-5 if head.weight.dtype == torch.float32 else 2e-2) * max(float(found.abs().max()), 1e-3)
    return scale if float((found - scale * z).abs().max()) <= tolerance else None


@torch.no_grad()
def objective_gradient(
    head: Projection,
    h_PD: Float[torch.Tensor, "P D"],
    terms: Terms,
    other: tuple[Projection, Float[torch.Tensor, "P D2"]] | None = None,
) -> tuple[Float[torch.Tensor, " P"], Float[torch.Tensor, "P D"]]:
    """J of each position and ∂J/∂h, both float32.

    Args:
        other: the second model's projection and final hidden states, where it gives q.
    """
    h_PD = h_PD.detach()
    n, weight = len(h_PD), head.weight
    loss = torch.zeros(n, device=h_PD.device)
    gradient = torch.zeros(h_PD.shape, device=h_PD.device)
    rows_TD = weight[terms.token_T].float()
    bias_T = 0.0 if head.bias is None else head.bias[terms.token_T].float()
    z_T = ((h_PD[terms.at_T].float() * rows_TD).sum(-1) + bias_T) * head.scale
    loss.index_add_(0, terms.at_T, -terms.weight_T * z_T)
    gradient.index_add_(0, terms.at_T, -terms.weight_T[:, None] * rows_TD)
    factor = torch.zeros(n, device=h_PD.device)
    if not terms.logit:
        factor.index_add_(0, terms.at_T, terms.weight_T)
    factor += terms.matched_P
    normed = factor.abs().gt(1e-6).nonzero()[:, 0]  # a foil beside its target needs no normaliser
    if len(normed):
        lse, mean = _softmax_mean(head, h_PD[normed])
        loss[normed] += factor[normed] * lse
        gradient[normed] += factor[normed, None] * mean
    if other is not None:
        matched = terms.matched_P.nonzero()[:, 0]
        entropy_and_z, mean = _other_mean(head, h_PD[matched], other[0], other[1][matched])
        loss[matched] += entropy_and_z
        gradient[matched] -= mean
    return loss, gradient * head.scale


def _softmax_mean(
    head: Projection, h_PD: Float[torch.Tensor, "P D"]
) -> tuple[Float[torch.Tensor, " P"], Float[torch.Tensor, "P D"]]:
    """logsumexp(z) and E_p[W]."""
    n = len(h_PD)
    top = torch.full((n,), -torch.inf, device=h_PD.device)
    total = torch.zeros(n, device=h_PD.device)
    mean = torch.zeros(h_PD.shape, device=h_PD.device)
    step = head.step(n)
    for low in head.steps(n):
        z = head.logits(h_PD, low, low + step)
        higher = torch.maximum(top, z.amax(dim=1))
        shrink = (top - higher).exp()
        p = z.sub_(higher[:, None]).exp_()
        total = total * shrink + p.sum(dim=1)
        mean = mean * shrink[:, None] + (p.to(head.weight.dtype) @ head.weight[low : low + step]).float()
        top = higher
    return top + total.log(), mean / total[:, None]


def _other_mean(
    head: Projection,
    h_PD: Float[torch.Tensor, "P D"],
    other: Projection,
    other_PD: Float[torch.Tensor, "P D2"],
) -> tuple[Float[torch.Tensor, " P"], Float[torch.Tensor, "P D"]]:
    """Σ q (log q − z) and E_q[W]."""
    n = len(h_PD)
    step = head.step(n)
    lse, _ = _softmax_mean(other, other_PD)
    loss = torch.zeros(n, device=h_PD.device)
    mean = torch.zeros(h_PD.shape, device=h_PD.device)
    for low in head.steps(n):
        log_q = other.logits(other_PD, low, low + step) - lse[:, None]
        q = log_q.exp()
        loss += (q * (log_q - head.logits(h_PD, low, low + step))).sum(dim=1)
        mean += (q.to(head.weight.dtype) @ head.weight[low : low + step]).float()
    return loss, mean


def objective_of_logits(
    logits_PV: Float[torch.Tensor, "P V"], terms: Terms, other_PV: Float[torch.Tensor, "P V"] | None = None
) -> Float[torch.Tensor, " P"]:
    """J of each position from whole logits, differentiable: the plain way."""
    logits = logits_PV.float()
    log_p = logits.log_softmax(-1)
    values = (logits if terms.logit else log_p)[terms.at_T, terms.token_T]
    loss = torch.zeros(len(logits), device=logits.device).index_add(0, terms.at_T, -terms.weight_T * values)
    if other_PV is not None:
        log_q = other_PV.float().log_softmax(-1)
        loss = loss + terms.matched_P * (log_q.exp() * (log_q - log_p)).sum(-1)
    return loss
