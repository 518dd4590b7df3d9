"""Run one step at the last token of many contexts: what lookahead, calibration and the linear prediction share.

The tokens before the last are run once a context and cached. So is the last token up to the hook, because a step cannot
change what lies below it; an injection runs the blocks above the hook only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from gradatoms.errors import ConfigError
from gradatoms.hooking import Edit, edit_output, edit_site
from gradatoms.models import HookSite, LoadedModel
from gradatoms.prefix import Prefix, run_prefix, run_tail, similar

ROWS = 128
"""Injections run at once; bounds memory."""
_CONTEXTS = 128
"""Contexts whose prefixes are cached together, at most."""
_TOKENS = 8192
"""Padded tokens of these, at most."""


@dataclass(frozen=True)
class Group:
    """Contexts of similar length with their cached prefixes, and the injections into them."""

    prefix: Prefix
    ids_B1: Int[torch.Tensor, "B 1"]
    """The last token of each context."""
    plain_BV: Float[torch.Tensor, "B V"]
    """Log-probabilities after it, without a step."""
    below: Below | None
    """What comes up from the blocks that no step can change; None where they have to be run."""
    row_J: Int[torch.Tensor, " J"]
    """Context of each injection, as a row of this group."""
    direction_J: Int[torch.Tensor, " J"]
    """Direction of each injection."""

    def parts(self, keep_K: torch.Tensor | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(rows, directions) of the injections, some at a time; only directions in the mask ``keep_K`` where given."""
        row_J, direction_J = self.row_J, self.direction_J
        if keep_K is not None:
            kept = keep_K[direction_J]
            row_J, direction_J = row_J[kept], direction_J[kept]
        if len(row_J):
            yield from zip(row_J.split(ROWS), direction_J.split(ROWS), strict=True)


@dataclass(frozen=True)
class Below:
    """The blocks under a hook and what the last of them gives for the last token of each context."""

    blocks: tuple[nn.Module, ...]
    h_B1D: Float[torch.Tensor, "B 1 D"]


@torch.no_grad()
def grouped(
    loaded: LoadedModel, hook: HookSite, contexts: Sequence[Sequence[int]], pairs: Sequence[tuple[int, int]]
) -> Iterator[Group]:
    """Cache contexts, some at a time, with the (direction, context) pairs to run in them.

    Raises:
        ConfigError: a context has no token.
    """
    wanted: dict[int, list[int]] = {}
    for direction, context in pairs:
        wanted.setdefault(context, []).append(direction)
    if not all(len(contexts[c]) for c in wanted):
        raise ConfigError("expected contexts of at least one token, got an empty one; leave it out")
    skippable: bool | None = None
    used = list(wanted)
    for group_of in similar([len(contexts[c]) - 1 for c in used], _CONTEXTS, _TOKENS):
        members = [used[i] for i in group_of]
        jobs = [(row, direction) for row, c in enumerate(members) for direction in wanted[c]]
        row_J, direction_J = torch.tensor(jobs, device=loaded.device).T.contiguous()
        group = Group(*_cache(loaded, hook, [contexts[c] for c in members]), row_J, direction_J)
        if skippable is None:
            skippable = _skips(loaded, hook, group)
        yield group if skippable else replace(group, below=None)


def _cache(
    loaded: LoadedModel, hook: HookSite, contexts: Sequence[Sequence[int]]
) -> tuple[Prefix, torch.Tensor, torch.Tensor, Below | None]:
    """The contexts' own part of a group: prefixes, last tokens, plain log-probabilities, what comes up from below."""
    prefix = run_prefix(loaded, [c[:-1] for c in contexts])
    ids = torch.tensor([[c[-1]] for c in contexts], device=loaded.device)
    blocks = _blocks_below(loaded, hook)
    seen: list[torch.Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(edit_site(hook, lambda _h: None))  # it refuses what has no residual stream
        if blocks:
            stack.enter_context(edit_output(blocks[-1], seen.append))
        plain = _log_p(_forward(loaded, prefix, ids, torch.arange(len(contexts), device=loaded.device)))
    whole = bool(seen) and seen[0].shape == (len(contexts), 1, hook.d)
    return prefix, ids, plain, Below(blocks, seen[0]) if whole else None


def _blocks_below(loaded: LoadedModel, hook: HookSite) -> tuple[nn.Module, ...]:
    """The blocks, in order, that are done when the hook's edit acts."""
    last = hook.layer + (hook.kind == "resid_post")
    blocks = {site.layer: site.block for site in loaded.hooks.values()}
    return tuple(blocks[layer] for layer in sorted(blocks) if layer < last)


def _skips(loaded: LoadedModel, hook: HookSite, group: Group) -> bool:
    """Whether the blocks above the hook alone give what the whole model gives, tried on one context."""
    if group.below is None:
        return False
    row = group.row_J[:1]
    try:
        found = inject(loaded, hook, group, row, torch.zeros(1, hook.d, device=loaded.device), 0.0)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # the model needs more from a block than its output
    plain = group.plain_BV[:1]
    return float((plain.exp() * (plain - found)).sum()) < 1e-3


def inject(
    loaded: LoadedModel,
    hook: HookSite,
    group: Group,
    rows: Int[torch.Tensor, " R"],
    direction_RD: Float[torch.Tensor, "R D"],
    alpha: float | Float[torch.Tensor, " R"],
) -> Float[torch.Tensor, "R V"]:
    """Log-probabilities, in float32, after contexts ``rows`` with a step α‖h‖·direction at their last token."""
    return _log_p(inject_with(loaded, hook, group, rows, adder(direction_RD, alpha)))


def inject_with(
    loaded: LoadedModel, hook: HookSite, group: Group, rows: Int[torch.Tensor, " R"], edit: Edit
) -> Float[torch.Tensor, "R V"]:
    """Logits after contexts ``rows`` with any edit at the hook; ``edit`` sees h of shape (R, 1, d)."""
    with ExitStack() as stack:
        stack.enter_context(edit_site(hook, edit))
        prefix = group.prefix
        if group.below is not None:
            stack.enter_context(_passed(group.below.blocks, group.below.h_B1D[rows]))
            prefix = _Upper(prefix.cache, prefix.mask, len(group.below.blocks))
        return _forward(loaded, prefix, group.ids_B1, rows)


def adder(direction_RD: Float[torch.Tensor, "R D"], alpha: float | Float[torch.Tensor, " R"]) -> Edit:
    """An edit that steps the first position of each row by α‖h‖ along that row's direction."""
    alpha_R11 = torch.as_tensor(alpha, device=direction_RD.device).reshape(-1, 1, 1)

    def add(h: torch.Tensor) -> torch.Tensor:
        first = h[:, :1]
        step = (alpha_R11 * direction_RD[:, None]).to(h.dtype) * first.norm(dim=-1, keepdim=True)
        return torch.cat([first + step, h[:, 1:]], dim=1)

    return add


def _forward(loaded: LoadedModel, prefix: Prefix, ids_B1: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Logits (R, V) after the last token of contexts ``rows``."""
    at = (torch.arange(len(rows), device=rows.device), torch.zeros_like(rows))
    return run_tail(loaded, prefix, rows, ids=ids_B1[rows], at=at)


def _log_p(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1)


@dataclass(frozen=True)
class _Upper(Prefix):
    """A prefix of which the first ``skipped`` layers are not read, only asked for their length."""

    skipped: int = 0

    def fork(self, index: torch.Tensor) -> Any:
        if self.mask.shape[1] == 0:
            return None
        fork = copy.copy(self.cache)
        fork.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in fork.layers[self.skipped :]:
            layer.batch_select_indices(index)
        return fork


@contextmanager
def _passed(blocks: Sequence[nn.Module], h_R1D: torch.Tensor) -> Iterator[None]:
    """While open, ``blocks`` are not run: each passes on what it is given, the last one gives ``h_R1D``."""

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = pass_on
        blocks[-1].forward = lambda *_args, **_kwargs: h_R1D
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                vars(block).pop("forward", None)
            else:
                block.forward = own


def per_direction(
    alpha: float | int | Float[np.ndarray, " K"], n: int, device: torch.device
) -> Float[torch.Tensor, " K"]:
    """Strengths, one for each of ``n`` directions.

    Raises:
        ConfigError: as many strengths as directions, or one, were expected.
    """
    found = torch.as_tensor(np.asarray(alpha, np.float32), device=device)
    if found.dim() and len(found) != n:
        raise ConfigError(f"expected one alpha or one for each of {n} directions, got {len(found)}")
    return found.expand(n)
