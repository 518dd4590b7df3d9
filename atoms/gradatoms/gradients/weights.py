"""Weight gradients of documents, one row a document, projected as they are computed.

G = Σ_t δ_t x_tᵀ of a module is never formed: what goes in is brought to the kept input directions, X V_A (S, a), in the forward pass;
what comes back to the kept output directions, Δ V_S (S, s), in the backward pass; and their product over tokens, (s, a), holds the
kept components. So a pass of many documents costs as much as one without weight gradients, and a document's row is the same
whatever batch it is in.

A second set of rows, ``weights:sketch``, has the whole gradient in a random projection P_Sᵀ G P_A of every module (sign matrices):
inner products of sketches are those of the raw gradients in the mean, so norms and cosines of raw gradients, which coherence
asks for, can be read from a store. (Of a gradient of rank one, with p directions a side, the relative standard error of a module's
inner product is about √(2/p); modules are independent.)

Legend: B documents, L lines, S tokens, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from gradatoms.errors import ConfigError
from gradatoms.examples import Example
from gradatoms.gradients.batches import TokenBatch, by_budget, pad
from gradatoms.gradients.linear import LinearSite, linear_sites
from gradatoms.gradients.passes import WatchedPass
from gradatoms.gradients.projection import ModuleProjection, Projection, signs
from gradatoms.gradients.residual import BatchGradients
from gradatoms.gradients.sequences import tokenize_usable
from gradatoms.gradients.tuning import document_tokens
from gradatoms.models import LoadedModel
from gradatoms_store import SKETCH, HookSpec

HOOK = "weights"
"""The one hook of a store of weight gradients."""
DOCUMENT = "document"
"""Its positions: a row is a document."""


@dataclass(frozen=True)
class _Sides:
    """What a module's inputs and output gradients are brought to: kept directions and sketch beside each other."""

    V_A: torch.Tensor
    V_S: torch.Tensor
    a: int
    s: int
    at_A: torch.Tensor
    at_S: torch.Tensor
    scale: torch.Tensor


class WeightGradients(WatchedPass):
    """Takes one row a document.

    Args:
        sites: the modules, in the order of the projection.
        sketch: directions a side of the sketch of each module; 0 leaves it out.
        others: as for ``WatchedPass``.

    Raises:
        ConfigError: the projection is of other modules.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sites: Sequence[LinearSite],
        projection: Projection,
        *,
        sketch: int = 16,
        autocast: torch.dtype | None = None,
        reference: LoadedModel | None = None,
        attention: Sequence[tuple[int, str]] | None = None,
    ) -> None:
        super().__init__(loaded, sites, autocast=autocast, reference=reference, attention=attention)
        if [m.name for m in projection.modules] != [s.name for s in sites]:
            raise ConfigError("expected a projection of these modules, got one of others; fit it anew")
        self.projection = projection
        self._sides = [self._side(s, m, sketch) for s, m in zip(sites, projection.modules, strict=True)]
        self.specs = row_specs(sites, projection, sketch)
        self._slices = list(projection.slices().values())
        widths = np.cumsum([0, *((side.V_A.shape[1] - side.a) * (side.V_S.shape[1] - side.s) for side in self._sides)])
        self._sketched = [slice(int(low), int(high)) for low, high in pairwise(widths)]

    def _side(self, site: LinearSite, m: ModuleProjection, sketch: int) -> _Sides:
        V_A, V_S = m.V_A, m.V_S
        if sketch:
            V_A = torch.cat([V_A, signs(site.name, "sketch in", site.d_in, sketch, 0)], dim=1)
            V_S = torch.cat([V_S, signs(site.name, "sketch out", site.d_out, sketch, 0)], dim=1)
        device = self.loaded.device
        return _Sides(
            V_A.to(device), V_S.to(device), m.V_A.shape[1], m.V_S.shape[1], m.at_A.to(device), m.at_S.to(device), m.scale.to(device)
        )  # fmt: skip

    def __call__(self, batch: TokenBatch) -> BatchGradients:
        if batch.heads is not None:
            raise ConfigError(
                "expected documents in lines of their own, got shared beginnings; leave share_prefixes off"
            )
        lines = (batch.ids_LS.shape[0], batch.ids_LS.shape[1])
        rows = torch.zeros(lines[0], self.projection.d)
        sketches = torch.zeros(lines[0], self.specs[1].d if len(self.specs) > 1 else 0)

        def enter(number: int, x: torch.Tensor) -> torch.Tensor:
            return x.float() @ self._sides[number].V_A

        def leave(number: int, x: torch.Tensor, delta: torch.Tensor) -> None:
            side = self._sides[number]
            d = delta.float() @ side.V_S
            kept = torch.bmm(d[..., : side.s].transpose(1, 2), x[..., : side.a])
            rows[:, self._slices[number]] += (kept[:, side.at_S, side.at_A] / side.scale).cpu()
            if d.shape[-1] > side.s:
                found = torch.bmm(d[..., side.s :].transpose(1, 2), x[..., side.a :])
                sketches[:, self._sketched[number]] += found.flatten(1).cpu()

        loss_P = self.run(batch, enter, leave)
        loss_B = batch.constant_B.index_add(0, batch.at_seq_P, loss_P.to(batch.constant_B.device))
        line_B = batch.line_B.cpu()
        found = {spec.name: x[line_B].numpy() for spec, x in zip(self.specs, (rows, sketches), strict=False)}
        none = np.full(len(line_B), -1, dtype=np.int32)
        example = np.asarray(batch.example_B, dtype=np.int64)
        return BatchGradients(found, {}, example, none, none.copy(), example, loss_B.cpu().numpy())


@dataclass(frozen=True)
class Weights:
    """Whose gradients are harvested: modules, the components that are kept, and the size of the sketch."""

    sites: tuple[LinearSite, ...]
    projection: Projection
    sketch: int = 16
    """Directions a side; 0 for none."""

    def specs(self) -> list[HookSpec]:
        """The rows that a store has."""
        return row_specs(self.sites, self.projection, self.sketch)

    def taker(self, loaded: LoadedModel, **options: Any) -> WeightGradients:
        """What takes the gradients."""
        return WeightGradients(loaded, self.sites, self.projection, sketch=self.sketch, **options)


def row_specs(sites: Sequence[LinearSite], projection: Projection, sketch: int) -> list[HookSpec]:
    """The rows that a store of weight gradients has: components, and sketches if asked for."""
    what = f"{len(sites)} modules, components {projection.digest}"
    found = [HookSpec(name=HOOK, hf_name=what, d=projection.d)]
    if sketch:
        width = sum(min(sketch, s.d_in) * min(sketch, s.d_out) for s in sites)
        found.append(
            HookSpec(name=HOOK + SKETCH, hf_name=f"{len(sites)} modules, {sketch} random directions a side", d=width)
        )
    return found


def document_rows(
    loaded: LoadedModel,
    projection: Projection,
    examples: Sequence[Example],
    objective: str = "nll",
    *,
    batch_tokens: int | None = None,
) -> Iterator[tuple[Int[np.ndarray, " B"], Float[np.ndarray, "B D"]]]:
    """Rows of documents that are in no store, in the components of one: numbers among ``examples``, and gradients (not pushes).

    Documents that cannot be used are left out. ``batch_tokens``: padded tokens a batch; None as for a harvest.
    """
    known = linear_sites(loaded)
    missing = [m.name for m in projection.modules if m.name not in known]
    if missing:
        raise ConfigError(
            f"expected {loaded.fingerprint.name} to have {missing[0]}, it has not; load the model of these rows"
        )
    take = WeightGradients(loaded, [known[m.name] for m in projection.modules], projection, sketch=0)
    if not examples:
        return
    sequences, _ = tokenize_usable(loaded, examples, objective=objective)
    branches = [branch for one in sequences for branch in one]
    whole = [len(one) for one in sequences]
    held: dict[int, list[np.ndarray]] = {}
    for group in by_budget(branches, batch_tokens or document_tokens(loaded)):
        found = take(pad(group, loaded.device))
        ready = []
        for example, row in zip(found.example.tolist(), found.gradients[HOOK], strict=True):
            held.setdefault(example, []).append(row)
            if len(held[example]) == whole[example]:
                ready.append(example)
        if ready:
            yield np.asarray(ready, np.int64), np.stack([np.sum(held.pop(e), axis=0) for e in ready])
