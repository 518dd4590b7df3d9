"""The steer page's job: generate without and with atoms, as it comes, and say what the step does on and off target."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from gradatoms.dictionary.base import Atoms
from gradatoms.errors import ConfigError
from gradatoms.lookahead import NEUTRAL
from gradatoms.models import LoadedModel
from gradatoms.steering import Meter, Operator, Positions, applied, calibrate, pad_id, sampling, steering
from gradatoms.weight_steps import Way, WeightStep, applied_step, atom_step, blend, calibrate_step

MAX_TOKENS = 200
MAX_ALPHA = 4.0
MAX_PROMPT = 2000
"""Characters."""
MAX_ATOMS = 8
SECONDS = 60.0
"""A generation that takes longer is cut."""
Steps = dict[tuple[int, Way], WeightStep]
"""Steps of the weights by atom and way; one of documents takes seconds to make."""
EXAMPLES = 6
"""Examples of the leading atom that an on-target effect is the mean over."""


@dataclass(frozen=True, kw_only=True)
class Ride:
    """What is asked of the steer page.

    Raises:
        ConfigError: beyond a cap.
    """

    prompt: str
    atoms: tuple[int, ...]
    alpha: tuple[float, ...]
    """Strengths in units of ‖h‖, or of ‖W‖ in weight space; with ``kl``, how the atoms are mixed."""
    kl: float | None = None
    """None takes the strengths as they are; else they are scaled to this effect on the prompt's next token, nats."""
    operator: Operator = "add"
    positions: Positions = "last"
    way: Way = "documents"
    """From an atom to a step, in weight space; there operator and positions are not asked for."""
    max_tokens: int = 40
    seed: int | None = None
    targets: tuple[tuple[str, str], ...] = field(default=())
    """(prompt, target) of examples of the first atom."""

    def __post_init__(self) -> None:
        checks = (
            (0 < len(self.prompt) <= MAX_PROMPT, f"a prompt of 1 to {MAX_PROMPT} characters", len(self.prompt)),
            (0 < len(self.atoms) <= MAX_ATOMS, f"1 to {MAX_ATOMS} atoms", len(self.atoms)),
            (len(self.alpha) == len(self.atoms), "a strength for each atom", len(self.alpha)),
            (
                all(abs(a) <= MAX_ALPHA for a in self.alpha),
                f"strengths from −{MAX_ALPHA:g} to {MAX_ALPHA:g}",
                self.alpha,
            ),
            (any(self.alpha) or self.operator != "add", "a strength other than 0", self.alpha),
            (1 <= self.max_tokens <= MAX_TOKENS, f"1 to {MAX_TOKENS} tokens", self.max_tokens),
            (self.kl is None or 0 < self.kl <= 20, "an effect above 0 and up to 20 nats", self.kl),
        )
        for fine, expected, came in checks:
            if not fine:
                raise ConfigError(f"expected {expected}, got {came}")


@dataclass(frozen=True)
class _Lever:
    """A change of the model, of a strength that is settled."""

    alpha: Sequence[float]
    on: Callable[[], AbstractContextManager[None]]
    positions: Positions = "last"

    def effect(self, loaded: LoadedModel, prompts: Sequence[str], tokens: int = 1) -> float:
        """KL(plain ‖ changed) on prompts, nats a token."""
        meter = Meter(loaded, prompts, positions=self.positions, tokens=tokens)
        return float(meter.under(lambda _: self.on()).mean())


def _of_activations(loaded: LoadedModel, atoms: Atoms, asked: Ride) -> _Lever:
    chosen = [atoms[i] for i in asked.atoms]
    alpha: Sequence[float] = asked.alpha
    if asked.kl is not None:
        scale = calibrate(
            loaded,
            chosen,
            [asked.prompt],
            kl=asked.kl,
            weights=alpha,
            operator=asked.operator,
            positions=asked.positions,
        )
        alpha = [scale * a for a in alpha]
    what = steering(chosen, list(alpha), asked.operator, asked.positions)
    return _Lever(what.alpha, lambda: applied(loaded, what), asked.positions)


def _of_weights(loaded: LoadedModel, atoms: Atoms, asked: Ride, kept: Steps) -> _Lever:
    steps = {(i, asked.way): kept.get((i, asked.way)) or atom_step(loaded, atoms, i, asked.way) for i in asked.atoms}
    kept.clear()
    kept.update(steps)
    step, size = blend([(steps[i, asked.way], a) for i, a in zip(asked.atoms, asked.alpha, strict=True)])
    scale = 1.0
    if asked.kl is not None:
        scale = calibrate_step(Meter(loaded, [asked.prompt], tokens=1), loaded, step, asked.kl)[0] / size
    return _Lever([scale * a for a in asked.alpha], lambda: applied_step(loaded, step, scale * size))


def ride(
    loaded: LoadedModel, atoms: Atoms, asked: Ride, stopped: Callable[[], bool], kept: Steps | None = None
) -> Generator[dict[str, Any]]:
    """Events: ``strength`` (alpha, kl), ``plain`` and ``steered`` (the text so far), ``effects`` (on and off target), ``end``.

    Args:
        kept: where the last ride's steps of the weights stand, and this one's are left.
    """
    if atoms.space == "weights":
        lever = _of_weights(loaded, atoms, asked, {} if kept is None else kept)
    else:
        lever = _of_activations(loaded, atoms, asked)
    digits = 6 if atoms.space == "weights" else 4
    kl = lever.effect(loaded, [asked.prompt])
    yield {"kind": "strength", "alpha": [round(a, digits) for a in lever.alpha], "kl": kl}
    deadline = time.monotonic() + SECONDS

    def over() -> bool:
        return stopped() or time.monotonic() > deadline

    for text in stream(loaded, asked.prompt, asked.max_tokens, asked.seed, over):
        yield {"kind": "plain", "text": text}
    with lever.on():
        for text in stream(loaded, asked.prompt, asked.max_tokens, asked.seed, over):
            yield {"kind": "steered", "text": text}
    cut = over()
    if not cut:
        yield {"kind": "effects"} | _effects(loaded, lever, asked.targets)
    yield {"kind": "end", "cut": cut}


def _effects(loaded: LoadedModel, lever: _Lever, targets: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """``on``: mean rise of log p(first target token) on examples of the atom, nats; ``off``: mean KL in neutral contexts, nats."""
    gains = []
    for prompt, target in targets[:EXAMPLES]:
        ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids.to(loaded.device)
        wanted = loaded.tokenizer(target, add_special_tokens=False).input_ids[:1]
        if not wanted or not ids.shape[1]:
            continue
        plain = _last(loaded, ids)
        with lever.on():
            steered = _last(loaded, ids)
        gains.append(float(steered[wanted[0]] - plain[wanted[0]]))
    off = lever.effect(loaded, list(NEUTRAL), tokens=2)
    return {"on": sum(gains) / len(gains) if gains else None, "on_examples": len(gains), "off": off}


@torch.no_grad()
def _last(loaded: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    return loaded.model(input_ids=ids).logits[0, -1].float().log_softmax(-1)


def stream(
    loaded: LoadedModel, prompt: str, max_tokens: int, seed: int | None, stopped: Callable[[], bool]
) -> Iterator[str]:
    """The continuation of ``prompt``, again and again as it grows: greedy, or sampled at temperature 1 with a seed."""
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    streamer = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = loaded.tokenizer(prompt, return_tensors="pt").to(loaded.device)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                if seed is not None:
                    torch.manual_seed(seed)
                loaded.model.generate(  # type: ignore[operator]
                    **inputs, max_new_tokens=max_tokens, streamer=streamer, **sampling(seed),
                    pad_token_id=pad_id(loaded),
                    stopping_criteria=StoppingCriteriaList([lambda ids, scores, **_: stopped()]),
                )  # fmt: skip
        except BaseException as error:  # raised again where the text is read
            failed.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    text = ""
    try:
        for part in streamer:
            text += part
            yield text
    finally:
        thread.join()
    if failed:
        raise failed[0]
