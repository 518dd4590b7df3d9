"""The measuring of one atom after another: plain runs and what all atoms share are done once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from gradatoms.dictionary.base import Atom
from gradatoms.dose.cases import Case, Cases
from gradatoms.dose.fluency import perplexities
from gradatoms.dose.neutral import CALIBRATING, UNSEEN
from gradatoms.dose.records import Asked, Curve, Dose, DoseConfig, Effect, Unmeasured, safe
from gradatoms.gradients.sequences import TokenSequence, tokenize_usable
from gradatoms.injection import grouped, inject
from gradatoms.labels.places import objective_here
from gradatoms.labels.selection import random_directions
from gradatoms.lookahead import stepped
from gradatoms.models import HookSite, LoadedModel
from gradatoms.steering import Meter, Steering, steering, strength

Strengths = list[tuple[float, float]]
"""For each budget the strength and the effect that it has."""
_BATCH = 48
"""Prompts a pass."""


class Bench:
    """Measures curves of a dictionary's atoms."""

    def __init__(self, loaded: LoadedModel, cases: Cases) -> None:
        self.loaded, self.cases, self.config = loaded, cases, cases.config
        self.hook = loaded.hook(cases.hook)
        config = self.config
        self.neutral = Meter(loaded, CALIBRATING, tokens=config.tokens, batch=_BATCH)
        prompts, self._active = cases.unrelated()
        self._unrelated = Meter(loaded, prompts, tokens=config.unrelated_tokens, batch=_BATCH) if prompts else None
        self._written = _alike_first([loaded.tokenizer(p).input_ids for p in UNSEEN])[: config.written]
        self._plain_perplexity = float(self._perplexities(np.zeros(self.hook.d, np.float32), [0.0])[0])
        noise = random_directions(config.randoms, self.hook.d, config.seed)
        self._randoms = [Atom(-1, self.hook.name, v) for v in noise]
        self._random_strengths = [self.strengths(each) for each in self._randoms]

    def strengths(self, direction: Atom) -> Strengths:
        """The strength of a direction for each budget."""
        return strengths(self.neutral, direction, self.config)

    def curve(self, case: Case, settings: str) -> Curve | Unmeasured:
        """Dose and response of one atom."""
        begin = time.perf_counter()
        config, index = self.config, case.atom.index
        if not case.held:
            why = f"expected held-out rows that atom {index} leads, found none; harvest more examples of its kind"
            return Unmeasured(atom=index, settings=settings, failure=why)
        found = {"atom": [(case.atom, self.strengths(case.atom))]}
        found["random"] = list(zip(self._randoms, self._random_strengths, strict=True))
        found |= {name: [(direction, self.strengths(direction))] for name, direction in case.others.items()}
        target = OnTarget(self.loaded, self.hook, case, objective_here(self.cases.store))
        effects = target.effects(found, config.budgets)
        asked = None
        if case.label is not None:
            request = config.request.format(label=case.label)
            asked = target.asked(request, self.neutral)
        alpha = [each.alpha for each in effects["atom"]]
        texts = self._perplexities(case.atom.direction, alpha)
        own = effects.pop("atom")
        doses = []
        for i, effect in enumerate(own):
            rivals = {name: each[i].gain for name, each in effects.items() if each[i].met}
            rivals |= {} if asked is None else {"prompt": asked.gain}
            doses.append(
                Dose(
                    **vars(effect),
                    off_target_kl=self._off_target(case.atom, effect.alpha),
                    perplexity=float(texts[i]),
                    perplexity_ratio=float(texts[i]) / self._plain_perplexity,
                    beats={name: effect.gain > gain for name, gain in rivals.items()} if effect.met else {},
                )
            )
        limit = safe(doses, config.fluent)
        return Curve(
            atom=index, settings=settings, label=case.label, concept=case.concept, rows=tuple(case.held),
            objective=target.objective, target_rate=target.plain_rate, perplexity=self._plain_perplexity,
            doses=tuple(doses), baselines={name: tuple(each) for name, each in effects.items()}, prompt=asked,
            safe_alpha=None if limit is None else limit[0], safe_kl=None if limit is None else limit[1],
            seconds=time.perf_counter() - begin,
        )  # fmt: skip

    def _off_target(self, atom: Atom, alpha: float) -> float | None:
        idle = ~self._active[:, atom.index]
        if self._unrelated is None or not idle.any():
            return None
        return float(self._unrelated.each(steering(atom, alpha))[idle].mean())

    def _perplexities(self, direction: Float[np.ndarray, " D"], alpha: Sequence[float]) -> Float[np.ndarray, " M"]:
        return perplexities(
            self.loaded, self.hook, direction, alpha, self._written, tokens=self.config.written_tokens, seed=self.config.seed
        )  # fmt: skip


class OnTarget:
    """The held-out examples of an atom, and what steps do to them.

    Args:
        objective: of the store, in a form that one model can compute.
    """

    def __init__(self, loaded: LoadedModel, hook: HookSite, case: Case, objective: str) -> None:
        self.loaded, self.hook, self.case, self._objective = loaded, hook, case, objective
        self._branches: list[tuple[TokenSequence, int]] = []
        self._owner: list[int] = []
        for i, row in enumerate(case.held):
            found = case.places.branches(row)
            self._branches += found
            self._owner += [i] * len(found)
        examples = [case.places.example(row) for row in case.held]
        self._asking = [i for i, example in enumerate(examples) if example.prompt and not example.loss]
        """Examples that have a prompt, to which something can be said before and after."""
        self._examples = examples
        zero = np.zeros((1, hook.d), np.float32)
        self.objective = float(self._by_row(self._J(self._branches, zero))[:, 0].mean())
        self.plain_rate = self._rates(self._prompts(self._branches, self._owner), zero)[0]

    def effects(
        self, directions: Mapping[str, Sequence[tuple[Atom, Strengths]]], budgets: Sequence[float]
    ) -> dict[str, list[Effect]]:
        """What directions do with each budget; of several under one name, the mean."""
        every = [(name, v, found) for name, group in directions.items() for v, found in group]
        steps = np.concatenate([
            np.asarray([alpha for alpha, _ in found], np.float32)[:, None] * v.direction for _, v, found in every
        ])  # fmt: skip
        J = self._by_row(self._J(self._branches, steps))
        gains = (J[:, :1] - J[:, 1:]).mean(axis=0)
        rates = self._rates(self._prompts(self._branches, self._owner), steps)
        result: dict[str, list[Effect]] = {name: [] for name in directions}
        for name in directions:
            members = [i for i, (other, _, _) in enumerate(every) if other == name]
            for k, budget in enumerate(budgets):
                at = [i * len(budgets) + k for i in members]
                known = [rate for j in at if (rate := rates[j]) is not None]
                result[name].append(
                    Effect(
                        budget=float(budget),
                        alpha=float(np.mean([every[i][2][k][0] for i in members])),
                        kl=float(np.mean([every[i][2][k][1] for i in members])),
                        gain=float(gains[at].mean()),
                        target_rate=float(np.mean(known)) if len(known) == len(at) else None,
                    )
                )
        return result

    def asked(self, request: str, neutral: Meter) -> Asked | None:
        """What a request before the prompt does; None where no example has a prompt, or none has room for it."""
        if not self._asking:
            return None
        longer = [replace(self._examples[i], prompt=request + self._examples[i].prompt) for i in self._asking]
        sequences, _ = tokenize_usable(self.loaded, longer, objective=self._objective, positions="last")
        before: list[tuple[TokenSequence, int]] = []
        after: list[tuple[TokenSequence, int]] = []
        owner: list[int] = []
        for i, found in zip(self._asking, sequences, strict=True):
            own = [self._branches[j] for j, row in enumerate(self._owner) if row == i] if found else []
            for (old, position), new in zip(own, found, strict=False):  # a later row may have no second branch
                before.append((old, position))
                after.append((new, position + len(new.ids) - len(old.ids)))
                owner.append(i)
        if not owner:
            return None
        zero = np.zeros((1, self.hook.d), np.float32)
        gain = (self._J(before, zero)[:, 0] - self._J(after, zero)[:, 0]).sum() / len(set(owner))
        return Asked(
            request=request,
            kl=neutral.instead([request + prompt for prompt in CALIBRATING]),
            gain=float(gain),
            target_rate=self._rates(self._prompts(after, owner), zero)[0],
        )

    def _J(
        self, branches: Sequence[tuple[TokenSequence, int]], steps: Float[np.ndarray, "M D"]
    ) -> Float[np.ndarray, "R M1"]:
        """J of each sequence without and with each step, which are in units of ‖h‖."""
        every = np.broadcast_to(steps, (len(branches), *steps.shape))
        return stepped(self.loaded, self.hook, branches, every, eta=1.0).objective

    def _by_row(self, J: Float[np.ndarray, "R M1"]) -> Float[np.ndarray, "n M1"]:
        found = np.zeros((len(self.case.held), J.shape[1]))
        np.add.at(found, self._owner, J)
        return found

    def _prompts(self, branches: Sequence[tuple[TokenSequence, int]], owner: Sequence[int]) -> list[tuple[int, ...]]:
        """Token ids of the prompts of the examples that have one."""
        first = {row: sequence for row, (sequence, _) in reversed(list(zip(owner, branches, strict=True)))}
        return [
            first[row].ids[: min(at for at, _, _ in first[row].terms) + 1]
            for row in sorted(first)
            if row in self._asking
        ]

    @torch.no_grad()
    def _rates(self, prompts: Sequence[tuple[int, ...]], steps: Float[np.ndarray, "M D"]) -> list[float | None]:
        """Share of prompts after which, with each step at the last token, the likeliest token is one of the targets."""
        if not prompts or not self.case.targets:
            return [None] * len(steps)
        pairs = [(m * len(prompts) + i, i) for m in range(len(steps)) for i in range(len(prompts))]
        every = torch.as_tensor(np.repeat(steps, len(prompts), axis=0), device=self.loaded.device)
        right = np.zeros(len(pairs))
        for group in grouped(self.loaded, self.hook, prompts, pairs):
            for rows, chosen in group.parts():
                top = inject(self.loaded, self.hook, group, rows, every[chosen], 1.0).argmax(-1)
                right[chosen.cpu().numpy()] = [int(token) in self.case.targets for token in top.tolist()]
        return [float(rate) for rate in right.reshape(len(steps), -1).mean(axis=1)]


def strengths(meter: Meter, direction: Atom, config: DoseConfig) -> Strengths:
    """The strength of a direction for each budget, with ``steering.calibrate``'s search; each begins where the ones before point."""
    tried: list[tuple[float, float]] = []

    def measured(what: Steering) -> float:
        kl = meter(what)
        tried.append((what.alpha[0], kl))
        return kl

    one = steering(direction, 1.0)
    return [strength(measured, one, kl, config.most, start=_foretold(tried, kl)) for kl in config.budgets]


def _foretold(tried: Sequence[tuple[float, float]], kl: float) -> float | None:
    """The α with this effect by a parabola through the three tries nearest to it, in logarithms; None without tries."""
    points: list[tuple[float, float]] = []  # log KL from the budget, log α
    for off, at in sorted(((np.log(k / kl), np.log(a)) for a, k in tried if a > 0 and k > 0), key=lambda p: abs(p[0])):
        if all(abs(at - other) > 0.05 for _, other in points):  # closer ones say little of the slope
            points.append((off, at))
    if not points:
        return None
    (off, at), *more = points[:3]
    slope = (at - more[0][1]) / (off - more[0][0]) if more and off != more[0][0] else 0.5  # KL goes as α² at small α
    straight = at - off * float(np.clip(slope, 0.3, 1.5))
    if len(points) < 3:
        return float(np.exp(straight))
    x, y = zip(*points[:3], strict=True)
    bent = float(np.polyfit(x, y, 2)[2]) if len(set(x)) == 3 else straight
    return float(np.exp(np.clip(bent, straight - 0.1, straight + 0.1)))


def _alike_first(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Prompts of the most frequent length first: together they make one batch."""
    count = Counter(len(ids) for ids in prompts)
    return sorted(prompts, key=lambda ids: -count[len(ids)])
