"""Steer a model with one atom, and find how strong a step a stated effect needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from gradatoms.calibration import calibrate_all, mean_kl
from gradatoms.dictionary.base import Atom
from gradatoms.errors import ConfigError
from gradatoms.hooking import edit_site
from gradatoms.models import HookSite, LoadedModel


@dataclass(frozen=True)
class Steered:
    """A generation without and with an atom."""

    alpha: float
    kl: float
    """KL(plain ‖ steered) of the first generated token, in nats."""
    plain: str
    steered: str


@contextmanager
def steer(loaded: LoadedModel, atom: Atom, *, alpha: float) -> Iterator[None]:
    """While open, every token the model predicts is predicted from h + α‖h‖·atom at the atom's hook.

    The step is taken at the last position of each forward pass: the prompt's last token, then each generated one. The
    hook is removed when the block ends, also on an exception.

    Args:
        alpha: strength in units of the local residual norm ‖h‖; negative pushes away.
    """
    direction = torch.as_tensor(atom.direction, device=loaded.device)

    def step(h: torch.Tensor) -> torch.Tensor:
        last = h[:, -1:]
        return torch.cat([h[:, :-1], last + alpha * last.norm(dim=-1, keepdim=True) * direction.to(h.dtype)], dim=1)

    with edit_site(loaded.hook(atom.hook), step):
        yield


def effect(loaded: LoadedModel, atom: Atom, prompts: Sequence[str], alpha: float) -> float:
    """Mean KL(plain ‖ steered) of the next token over ``prompts``, in nats."""
    return float(mean_kl(loaded, *_alone(loaded, atom, prompts), alpha=alpha)[0])


def calibrate(loaded: LoadedModel, atom: Atom, prompts: Sequence[str], *, kl: float, most: float = 4.0) -> float:
    """The strength α whose mean next-token KL over ``prompts`` is ``kl`` nats within 2 % (see ``calibrate_all``).

    Returns ``most`` where even that strength has a smaller effect.

    Raises:
        ConfigError: ``kl`` is not positive.
    """
    if not prompts:
        raise ConfigError("expected at least one prompt to calibrate on, got none")
    return float(calibrate_all(loaded, *_alone(loaded, atom, prompts), kl=kl, most=most).alpha[0])


def _alone(
    loaded: LoadedModel, atom: Atom, prompts: Sequence[str]
) -> tuple[HookSite, Float[np.ndarray, "1 D"], list[list[int]], list[tuple[int, int]]]:
    """Hook, directions, contexts and pairs of one atom in all prompts."""
    ids = [loaded.tokenizer(p).input_ids for p in prompts]
    return loaded.hook(atom.hook), atom.direction[None].astype(np.float32), ids, [(0, i) for i in range(len(ids))]


def generate_steered(
    loaded: LoadedModel, atom: Atom, prompt: str, *, alpha: float | None = None, kl: float = 0.5, max_tokens: int = 24
) -> Steered:
    """Greedy continuations of ``prompt`` without and with ``atom``.

    Args:
        alpha: strength in units of ‖h‖; None finds the one whose KL on this prompt is ``kl`` nats.
    """
    if not prompt:
        raise ConfigError("expected a prompt of at least one character, got an empty one")
    if max_tokens < 1:
        raise ConfigError(f"expected max_tokens of at least 1, got {max_tokens}")
    if alpha is None:
        alpha = calibrate(loaded, atom, [prompt], kl=kl)
    plain = generate(loaded, prompt, max_tokens)
    with steer(loaded, atom, alpha=alpha):
        steered = generate(loaded, prompt, max_tokens)
    return Steered(alpha, effect(loaded, atom, [prompt], alpha), plain, steered)


def generate(loaded: LoadedModel, prompt: str, max_tokens: int) -> str:
    """Greedy continuation of ``prompt``, without the prompt."""
    inputs = loaded.tokenizer(prompt, return_tensors="pt").to(loaded.device)
    with torch.no_grad():
        out = loaded.model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=loaded.tokenizer.eos_token_id
        )
    return loaded.decode(out[0, inputs.input_ids.shape[1] :].tolist())
