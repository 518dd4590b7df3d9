"""Steer a model with atoms, and find how strong a step a stated effect needs.

At the atoms' hook, at the positions asked for, with D the atoms' unit directions (n, d) and α a strength for each:

    add      h ← h + ‖h‖ Σ_i α_i d_i
    clamp    h ← h + D⁺ (α‖h‖ − D h)      the least change after which the component along each atom is α_i‖h‖
    ablate   h ← h − D⁺ (α ∘ D h)         takes the share α_i of each component away; 1 all of it

D⁺ the pseudo-inverse, so that atoms which are not at right angles do not count twice. Positions, counted from the prompt of a
generation, with the key-value cache or without it, padded on either side:

    last        the prompt's last token, and each one after it: all that new tokens are predicted from
    generated   only the tokens after the prompt
    all         prompt and all
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from gradatoms.calibration import Search
from gradatoms.dictionary.base import Atom
from gradatoms.errors import ConfigError
from gradatoms.hooking import Edit, edit_input, edit_site
from gradatoms.models import LoadedModel

Operator = Literal["add", "clamp", "ablate"]
Positions = Literal["last", "generated", "all"]
TOKENS = 1
"""Tokens of a continuation whose mean KL is an effect, unless told otherwise: the first."""


@dataclass(frozen=True)
class Steered:
    """A generation without and with an atom."""

    alpha: float
    """Strength of the first atom, in units of ‖h‖."""
    kl: float
    """KL(plain ‖ steered) of the first generated token, in nats; with positions ``generated``, of the second."""
    plain: str
    steered: str


def hooks_of_layers(hook: str, layers: Sequence[int]) -> list[str]:
    """The hooks of the kind of ``hook`` in other blocks."""
    _, _, kind = hook.split(".", 2)
    return [f"blocks.{layer}.{kind}" for layer in layers]


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What is done to the residual stream, and how strongly."""

    atoms: tuple[Atom, ...]
    alpha: tuple[float, ...]
    """Strength of each, in units of the local residual norm ‖h‖; negative pushes away. Of ``ablate``, the share taken away."""
    operator: Operator = "add"
    positions: Positions = "last"
    hooks: tuple[str, ...] = ()
    """Where, in place of each atom's own hook; several are all edited."""

    def __post_init__(self) -> None:
        for name, kinds in (("operator", Operator), ("positions", Positions)):
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError(f"expected {name} {', '.join(get_args(kinds))}, got {getattr(self, name)!r}")
        if not self.atoms or len(self.alpha) != len(self.atoms):
            raise ConfigError(
                f"expected at least one atom and a strength for each, got {len(self.atoms)} atoms and {len(self.alpha)} strengths"
            )
        if not np.isfinite(self.alpha).all():
            raise ConfigError(f"expected finite strengths, got {', '.join(map(str, self.alpha))}")

    def scaled(self, by: float | int) -> Steering:
        """The same with all strengths ``by`` times as large."""
        return Steering(
            atoms=self.atoms,
            alpha=tuple(by * a for a in self.alpha),
            operator=self.operator,
            positions=self.positions,
            hooks=self.hooks,
        )


def steering(
    atoms: Atom | Sequence[Atom],
    alpha: float | int | Sequence[float | int],
    operator: Operator = "add",
    positions: Positions = "last",
    hooks: Sequence[str] = (),
) -> Steering:
    """A checked ``Steering``; one strength counts for every atom.

    Raises:
        ConfigError: no atoms, another number of strengths, or an unknown operator or positions.
    """
    chosen = (atoms,) if isinstance(atoms, Atom) else tuple(atoms)
    strengths = [alpha] * len(chosen) if isinstance(alpha, float | int) else list(alpha)
    return Steering(
        atoms=chosen,
        alpha=tuple(float(a) for a in strengths),
        operator=operator,
        positions=positions,
        hooks=tuple(hooks),
    )


@contextmanager
def steer(
    loaded: LoadedModel,
    atoms: Atom | Sequence[Atom],
    *,
    alpha: float | int | Sequence[float | int],
    operator: Operator = "add",
    positions: Positions = "last",
    hooks: Sequence[str] = (),
) -> Iterator[None]:
    """While open the model is steered: in plain forwards and in ``generate``, in batches, with the key-value cache or without.

    The hooks are removed when the block ends, also on an exception.

    Args:
        atoms: one, or a set.
        alpha: strength in units of the local residual norm ‖h‖, one for all or one each; negative pushes away. Of
            ``ablate``, the share of the component that is taken away.
        operator, positions: see the module.
        hooks: where, in place of each atom's own hook; several are all edited.

    Raises:
        ConfigError: an unknown operator or positions, or strengths that do not fit the atoms.
        HookError: the model has no such hook.
    """
    with applied(loaded, steering(atoms, alpha, operator, positions, hooks)):
        yield


@contextmanager
def applied(loaded: LoadedModel, what: Steering, *, prompt: int | None = None) -> Iterator[None]:
    """While open the model is steered.

    Args:
        prompt: tokens of the prompt in texts that are run whole; None tells a prompt by its pass.
    """
    places = _Places(what.positions, prompt)
    with ExitStack() as stack:
        handle = loaded.model.register_forward_pre_hook(places.look, with_kwargs=True)
        stack.callback(handle.remove)
        for name in what.hooks or tuple(dict.fromkeys(atom.hook for atom in what.atoms)):
            chosen = [i for i, atom in enumerate(what.atoms) if what.hooks or atom.hook == name]
            directions = torch.stack([torch.as_tensor(what.atoms[i].direction) for i in chosen]).to(loaded.device)
            strengths = torch.tensor([what.alpha[i] for i in chosen], device=loaded.device)
            stack.enter_context(edit_site(loaded.hook(name), _edit(what.operator, directions, strengths, places)))
        yield


def _edit(operator: Operator, D: Float[torch.Tensor, "n d"], alpha: Float[torch.Tensor, " n"], places: _Places) -> Edit:
    back = None if operator == "add" else torch.linalg.pinv(D.double()).float()  # (d, n)

    def edit(h: torch.Tensor) -> torch.Tensor:
        at = places.mask(h.shape[1])
        x = h.float()
        if back is None:
            step = x.norm(dim=-1, keepdim=True) * (alpha @ D)
        elif operator == "clamp":
            step = (x.norm(dim=-1, keepdim=True) * alpha - x @ D.T) @ back.T
        else:
            step = -(x @ D.T * alpha) @ back.T
        return torch.where(at[..., None], (x + step).to(h.dtype), h)

    return edit


class _Places:
    """Which positions of a forward pass are steered; told by what the model is called with."""

    def __init__(self, positions: Positions, prompt: int | None) -> None:
        self.positions, self.fixed = positions, prompt
        self._ids: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None
        self._prompt = self._start = self._seen = 0

    def look(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a pass: where it starts, and whether it goes on with a text or begins one."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        length = given.shape[1] if given is not None else 0
        past = _past(kwargs)
        carried = kwargs.get("cache_params") is not None and length == 1 and self._seen > 0  # recurrent models
        if past or carried:
            self._start = past or self._seen
        else:
            self._start = 0
            before, self._ids = self._ids, ids
            if not _goes_on(before, ids):
                self._prompt = length if self.fixed is None else self.fixed
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None
        self._seen = self._start + length

    def mask(self, length: int) -> Bool[torch.Tensor, "B S"]:
        """Which of the ``length`` positions of this pass are steered; (1, S) where all rows are alike."""
        device = None if self._mask is None else self._mask.device
        at = self._start + torch.arange(length, device=device)[None]
        if self.positions == "all":
            return at >= 0
        if self.positions == "generated":
            return at >= self._prompt
        last = torch.tensor([[self._prompt - 1]], device=device)
        if self._mask is not None and self._start == 0 and self.fixed is None and length == self._prompt:
            places = torch.arange(self._mask.shape[1], device=device)
            last = (self._mask * places).amax(dim=1, keepdim=True)  # padding on the right
        return at >= last


def _past(kwargs: dict[str, Any]) -> int:
    """Tokens in the key-value cache that a model is called with."""
    cache = kwargs.get("past_key_values")
    return int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0


def _goes_on(before: torch.Tensor | None, ids: torch.Tensor | None) -> bool:
    """Whether a pass without a cache runs the text of the one before it, and more."""
    if before is None or ids is None or before.shape[0] != ids.shape[0] or before.shape[1] >= ids.shape[1]:
        return False
    return bool(torch.equal(ids[:, : before.shape[1]], before))


# Effects, and the strength of a stated effect


def effect(
    loaded: LoadedModel,
    atoms: Atom | Sequence[Atom],
    prompts: Sequence[str],
    alpha: float | int | Sequence[float | int],
    *,
    operator: Operator = "add",
    positions: Positions = "last",
    hooks: Sequence[str] = (),
    tokens: int = TOKENS,
) -> float:
    """Mean KL(plain ‖ steered), in nats, over ``prompts`` and the first ``tokens`` tokens of what the plain model continues with.

    Raises:
        ConfigError: no prompts, or no token that these positions reach.
    """
    return Meter(loaded, prompts, positions=positions, tokens=tokens)(
        steering(atoms, alpha, operator, positions, hooks)
    )


def calibrate(
    loaded: LoadedModel,
    atoms: Atom | Sequence[Atom],
    prompts: Sequence[str],
    *,
    kl: float,
    weights: Sequence[float | int] | None = None,
    most: float = 4.0,
    tolerance: float = 0.02,
    operator: Operator = "add",
    positions: Positions = "last",
    hooks: Sequence[str] = (),
    tokens: int = TOKENS,
) -> float:
    """The strength α whose effect on ``prompts`` is ``kl`` nats within ``tolerance``; of a set, α times ``weights``.

    The first crossing on the way out from 0.1 (see ``calibration.calibrate_all``). Returns ``most`` where even that strength has
    a smaller effect; of ``ablate`` at most 1, the whole component. ``clamp`` takes the component away where α is 0, which is
    an effect too: a smaller budget is never met, and the α that comes back is near 0.

    Raises:
        ConfigError: no prompts, or ``kl`` or ``most`` is not positive.
    """
    for name, value, unit in (("a KL budget", kl, " nats"), ("most", most, ""), ("a tolerance", tolerance, "")):
        if not value > 0:
            raise ConfigError(f"expected {name} above 0{unit}, got {value}")
    count = 1 if isinstance(atoms, Atom) else len(atoms)
    one = steering(atoms, [1.0] * count if weights is None else weights, operator, positions, hooks)
    return strength(Meter(loaded, prompts, positions=positions, tokens=tokens), one, kl, most, tolerance)[0]


def strength(
    meter: Callable[[Steering], float],
    what: Steering,
    kl: float | int,
    most: float | int = 4.0,
    tolerance: float | int = 0.02,
    start: float | None = None,
) -> tuple[float, float]:
    """``calibrate`` with a meter that is at hand: how many times ``what`` has the effect ``kl``, and the effect that it has.

    Args:
        meter: the effect of a steering, nats.
        start: first α to try; None is 0.1.
    """
    furthest = min(float(most), 1.0) if what.operator == "ablate" else float(most)
    search = Search(1, float(kl), furthest, float(tolerance), None if start is None else np.asarray([start]))
    while not search.done.all():
        search.tell(np.arange(1), np.asarray([meter(what.scaled(float(search.alpha[0])))]))
    return float(search.alpha[0]), float(search.kl[0])


class Meter:
    """Measures mean KL(plain ‖ steered) on fixed prompts; what does not change is run once.

    Args:
        tokens: of the plain model's greedy continuation. The distributions of these tokens are compared, each after the
            plain tokens before it.
        batch: prompts a forward pass.
    """

    @torch.no_grad()
    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[str],
        *,
        positions: Positions = "last",
        tokens: int = TOKENS,
        batch: int = 16,
    ) -> None:
        if not prompts:
            raise ConfigError("expected at least one prompt to measure on, got none")
        if tokens < 1:
            raise ConfigError(f"expected tokens of at least 1, got {tokens}")
        self._loaded, self._tokens, self._batch = loaded, tokens, batch
        more = tokens - 1 + (positions == "generated")  # whose first token is predicted from the prompt
        self._parts: list[_Part] = []
        for members, prompt in _alike(loaded, [loaded.tokenizer(p).input_ids for p in prompts], batch):
            whole = prompt if more == 0 else _continued(loaded, prompt, more)
            self._parts.append(_Part(members, whole, prompt.shape[1], self._run(whole)))

    def __call__(self, what: Steering) -> float:
        """The effect of a steering, nats a token."""
        return float(self.each(what).mean())

    def each(self, what: Steering) -> Float[np.ndarray, " n"]:
        """The effect of a steering on each prompt, nats a token."""
        return self.under(lambda width: applied(self._loaded, what, prompt=width))

    def under(self, change: Callable[[int], AbstractContextManager[None]]) -> Float[np.ndarray, " n"]:
        """The effect of whatever ``change(tokens of the prompt)`` does to the model while open, on each prompt, nats a token."""
        found = np.zeros(sum(len(part.members) for part in self._parts))
        for part in self._parts:
            with change(part.width):
                steered = self._run(part.whole)
            found[part.members] = _divergence(part.plain, steered)
        return found

    def instead(self, prompts: Sequence[str]) -> float:
        """The effect of other prompts in the place of these, one for each: KL(after this prompt ‖ after that), nats a token."""
        found = []
        for part in self._parts:
            texts = [
                [*self._loaded.tokenizer(prompts[i]).input_ids, *ids[part.width :]]
                for i, ids in zip(part.members, part.whole.tolist(), strict=True)
            ]
            for members, ids in _alike(self._loaded, texts, self._batch):
                found += _divergence(part.plain[members], self._run(ids)).tolist()
        return float(np.mean(found))

    @torch.no_grad()
    def _run(self, ids: Int[torch.Tensor, "B S"]) -> Float[torch.Tensor, "B T V"]:
        """Log-probabilities of the compared tokens."""
        with edit_input(self._loaded.model.get_output_embeddings(), lambda h: h[:, -self._tokens :].contiguous()):
            logits = self._loaded.model(input_ids=ids, use_cache=False).logits
        return logits.float().log_softmax(-1)


@dataclass(frozen=True)
class _Part:
    """Prompts of one length, as they go on without steering."""

    members: list[int]
    whole: Int[torch.Tensor, "B S"]
    width: int
    """Tokens of the prompt."""
    plain: Float[torch.Tensor, "B T V"]
    """Log-probabilities."""


def _divergence(plain: Float[torch.Tensor, "B T V"], other: Float[torch.Tensor, "B T V"]) -> Float[np.ndarray, " B"]:
    """KL(plain ‖ other) of each text, nats a token."""
    return np.asarray((plain.exp() * (plain - other)).sum(-1).mean(-1).cpu().numpy(), np.float64)


def _alike(
    loaded: LoadedModel, texts: Sequence[list[int]], most: int
) -> Iterator[tuple[list[int], Int[torch.Tensor, "B S"]]]:
    """Texts of one length, so many at a time, and which; so nothing is padded: not every architecture takes padding."""
    if not all(texts):
        raise ConfigError("expected prompts of at least one token, got an empty one")
    for length in sorted({len(ids) for ids in texts}):
        members = [i for i, ids in enumerate(texts) if len(ids) == length]
        for start in range(0, len(members), most):
            part = members[start : start + most]
            yield part, torch.tensor([texts[i] for i in part], device=loaded.device)


def _continued(loaded: LoadedModel, ids: Int[torch.Tensor, "B S"], more: int) -> Int[torch.Tensor, "B T"]:
    """Texts with ``more`` tokens behind them, the plain model's greedy ones."""
    out: torch.Tensor = loaded.model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=more, max_new_tokens=more, do_sample=False,
        pad_token_id=pad_id(loaded),
    )  # fmt: skip
    return out


def pad_id(loaded: LoadedModel) -> int:
    """A token for places that nobody reads."""
    known = (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id)
    return next((int(token) for token in known if token is not None), 0)


# Generation


def generate_steered(
    loaded: LoadedModel,
    atoms: Atom | Sequence[Atom],
    prompt: str,
    *,
    alpha: float | int | Sequence[float | int] | None = None,
    kl: float | int = 0.5,
    weights: Sequence[float | int] | None = None,
    max_tokens: int = 24,
    operator: Operator = "add",
    positions: Positions = "last",
    hooks: Sequence[str] = (),
    seed: int | None = None,
) -> Steered:
    """Continuations of ``prompt`` without and with atoms.

    Args:
        alpha: strength in units of ‖h‖, one for all or one each; None finds the one whose KL on this prompt is ``kl`` nats.
        weights: how the atoms of a set are mixed where ``alpha`` is None; by default alike.
        seed: sample both with this seed, at temperature 1; None is greedy.
    """
    if not prompt:
        raise ConfigError("expected a prompt of at least one character, got an empty one")
    if max_tokens < 1:
        raise ConfigError(f"expected max_tokens of at least 1, got {max_tokens}")
    if alpha is None:
        mix = [1.0] * (1 if isinstance(atoms, Atom) else len(atoms)) if weights is None else weights
        scale = calibrate(
            loaded, atoms, [prompt], kl=float(kl), weights=mix, operator=operator, positions=positions, hooks=hooks
        )
        alpha = [scale * weight for weight in mix]
    what = steering(atoms, alpha, operator, positions, hooks)
    plain = generate(loaded, prompt, max_tokens, seed=seed)
    with applied(loaded, what):
        steered = generate(loaded, prompt, max_tokens, seed=seed)
    return Steered(what.alpha[0], Meter(loaded, [prompt], positions=positions)(what), plain, steered)


def generate(loaded: LoadedModel, prompt: str, max_tokens: int, *, seed: int | None = None) -> str:
    """Continuation of ``prompt``, without the prompt: greedy, or sampled at temperature 1 with a seed."""
    inputs = loaded.tokenizer(prompt, return_tensors="pt").to(loaded.device)
    with torch.no_grad(), torch.random.fork_rng(devices=[] if loaded.device.type == "cpu" else [loaded.device]):
        if seed is not None:
            torch.manual_seed(seed)
        out = loaded.model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=max_tokens, pad_token_id=pad_id(loaded), **sampling(seed)
        )
    return loaded.decode(out[0, inputs.input_ids.shape[1] :].tolist())


def sampling(seed: int | None) -> dict[str, Any]:
    """How ``generate`` chooses tokens: the likeliest, or with a seed by their probabilities."""
    return {"do_sample": False} if seed is None else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
