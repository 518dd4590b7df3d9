"""Which claim the numbers of a projector's report support, by rules that are fixed before there are numbers.

*Transmits the gradient's content*, on unseen examples of trained concepts (split ``seen``), all of:

    recall@1: the lower end of its interval lies above the upper end of every control's; its permutation p ≤ P_MOST
    context capture ≤ CAPTURE_MOST; noise described as an atom ≤ FALSE_POSITIVES_MOST
    two-way choice between the gradient's label and the context's: the lower end lies above ½

*Generalises to unseen targets, contexts, concepts*, each: it transmits, and on that split

    targets, contexts: the lower end of recall@1 lies above chance, p ≤ P_MOST, concept accuracy ≥ KEPT of the seen one's
    concepts: the lower end of recall@1 among the held-out labels lies above chance, and the two-way choice's above ½

A split of fewer than ROWS_LEAST rows decides nothing. What was not measured supports nothing. Every interval is 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CONTROLS = ("no vector", "zero", "mean gradient", "gaussian", "deranged", "sign flip")
"""Controls that recall@1 must clear; any further one in the report as well."""
NOISE = "gaussian"
"""The control whose descriptions are false positives."""
P_MOST = 0.01
CAPTURE_MOST = 0.05
FALSE_POSITIVES_MOST = 0.05
EVEN = 0.5
"""Chance of the two-way choice."""
KEPT = 0.75
"""Share of the seen concept accuracy that a split must keep."""
ROWS_LEAST = 10
BASELINE_MARGIN = 0.02
"""How much better, in concept accuracy, a baseline must be to be named beside the claim."""

_SPLITS = ("targets", "contexts", "concepts")
_ROUNDING = 1e-9
"""0.72 − 0.70 is not more than 0.02."""


@dataclass(frozen=True)
class Claims:
    """What the numbers support."""

    line: str
    """The claim in words."""
    transmits: bool
    unseen_targets: bool | None
    """None, here and below, where the split is too small to tell."""
    unseen_contexts: bool | None
    unseen_concepts: bool | None
    reasons: list[str] = field(default_factory=list)
    """For each claim the numbers that decided: all of a claim that holds, those that failed of one that does not."""


@dataclass(frozen=True)
class _Check:
    """One condition of a claim."""

    holds: bool
    number: str
    """What was compared."""


def claims_of(report: Mapping[str, Any]) -> Claims:
    """Apply the rules to a report.

    Args:
        report: needs ``splits``, ``controls``, ``baselines`` and ``chance``; each measure is a dict of ``value``, ``interval``,
            ``null`` and ``p``. Baselines marked ``reference`` are left out.
    """
    transmitting = _transmission(report)
    transmits = all(check.holds for check in transmitting)
    reasons = [_reason("transmits the gradient's content", transmits, transmitting)]
    unseen: dict[str, bool | None] = {}
    for name in _SPLITS:
        rows = _part(report, "splits", name).get("n", 0)
        if rows < ROWS_LEAST:
            unseen[name] = None
            reasons.append(f"unseen {name}: not tested, {rows} rows of at least {ROWS_LEAST}")
            continue
        checks = [_Check(transmits, f"the projector {'transmits' if transmits else 'does not transmit'}")]
        checks += _unseen_concepts(report) if name == "concepts" else _unseen(report, name)
        unseen[name] = all(check.holds for check in checks)
        reasons.append(_reason(f"generalises to unseen {name}", unseen[name] is True, checks))
    better = _better_baseline(report)
    if better:
        reasons.append(f"a plain baseline reads better: {better}")
    line = _sentence(transmits, unseen) + (
        f" A plain baseline reads the same gradients better ({better}), so the words add no accuracy over it."
        if better
        else ""
    )
    return Claims(line, transmits, unseen["targets"], unseen["contexts"], unseen["concepts"], reasons)


def _transmission(report: Mapping[str, Any]) -> list[_Check]:
    seen = _part(report, "splits", "seen")
    recall = _part(seen, "recall_at_1")
    noise = _number(_part(report, "controls", NOISE, "no_pressure").get("value"))
    return [
        _clears_controls(recall, _part(report, "controls")),
        _p_value(recall),
        _at_most("context capture", _number(_part(seen, "context_capture").get("value")), CAPTURE_MOST),
        _at_most("noise described as an atom", None if noise is None else 1 - noise, FALSE_POSITIVES_MOST),
        _above("gradient chosen over context", _part(seen, "two_afc"), EVEN, "even"),
    ]


def _unseen(report: Mapping[str, Any], name: str) -> list[_Check]:
    split, recall = _part(report, "splits", name), _part(report, "splits", name, "recall_at_1")
    whole = _number(_part(report, "splits", "seen", "concept_accuracy").get("value"))
    kept = _number(_part(split, "concept_accuracy").get("value"))
    if whole is None or kept is None:
        accuracy = _Check(False, "concept accuracy was not measured")
    else:
        holds = kept >= KEPT * whole - _ROUNDING
        accuracy = _Check(
            holds, f"concept accuracy {kept:.3f} is {'at least' if holds else 'below'} {KEPT} of the seen {whole:.3f}"
        )
    chance = _largest([_part(report, "chance").get("recall_at_1"), recall.get("null")])
    return [_above("recall@1", recall, chance, "chance"), _p_value(recall), accuracy]


def _unseen_concepts(report: Mapping[str, Any]) -> list[_Check]:
    split = _part(report, "splits", "concepts")
    hidden = _part(split, "recall_among_hidden")
    return [
        _above("recall@1 among the held-out labels", hidden, _number(hidden.get("null")), "chance"),
        _above("gradient chosen over context", _part(split, "two_afc"), EVEN, "even"),
    ]


def _clears_controls(recall: Mapping[str, Any], controls: Mapping[str, Any]) -> _Check:
    ends = {name: _end(_part(controls, name, "recall_at_1"), 1) for name in {*CONTROLS, *controls}}
    missing = sorted(name for name, end in ends.items() if end is None)
    if missing:
        return _Check(False, f"recall@1 of the controls was not measured: {', '.join(missing)}")
    highest = max(sorted(ends), key=lambda name: ends[name] or 0.0)
    return _above("recall@1", recall, ends[highest], f"the highest control ({highest}), up to")


def _above(name: str, measure: Mapping[str, Any], bound: float | None, what: str) -> _Check:
    """Whether the lower end of an interval lies above ``bound``."""
    value, low = _number(measure.get("value")), _end(measure, 0)
    if value is None or low is None or bound is None:
        return _Check(False, f"{name} or {what} was not measured")
    holds = low > bound + _ROUNDING
    return _Check(holds, f"{name} {value:.3f} (from {low:.3f}) is {'' if holds else 'not '}above {what} {bound:.3f}")


def _at_most(name: str, value: float | None, bound: float) -> _Check:
    if value is None:
        return _Check(False, f"{name} was not measured")
    holds = value <= bound + _ROUNDING
    return _Check(holds, f"{name} {value:.3f} is {'at most' if holds else 'above'} {bound}")


def _p_value(recall: Mapping[str, Any]) -> _Check:
    return _at_most("p of recall@1", _number(recall.get("p")), P_MOST)


def _better_baseline(report: Mapping[str, Any]) -> str | None:
    """The best plain baseline with its number and the projector's, if it is better by more than the margin."""
    own = _number(_part(report, "splits", "seen", "concept_accuracy").get("value"))
    scores = {
        name: _number(_part(row, "concept_accuracy").get("value"))
        for name, row in _part(report, "baselines").items()
        if not row.get("reference")
    }
    measured = {name: score for name, score in scores.items() if score is not None}
    if own is None or not measured:
        return None
    best = max(sorted(measured), key=lambda name: measured[name])
    if measured[best] <= own + BASELINE_MARGIN + _ROUNDING:
        return None
    return f"{best}: concept accuracy {measured[best]:.3f} against {own:.3f}"


def _sentence(transmits: bool, unseen: Mapping[str, bool | None]) -> str:
    holding = [name for name in _SPLITS if unseen[name] is True]
    failing = [name for name in _SPLITS if unseen[name] is False]
    untested = [name for name in _SPLITS if unseen[name] is None]
    if transmits:
        line = "These numbers support: the projector transmits the gradient's content"
        line += f", and generalises to unseen {_listed(holding, 'and')}" if holding else ""
        line += f"; they do not support generalisation to unseen {_listed(failing, 'or')}" if failing else ""
    else:
        line = "These numbers do not support: the projector transmits the gradient's content"
        line += f", or generalises to unseen {_listed(failing, 'or')}" if failing else ""
    line += f"; not tested: unseen {_listed(untested, 'and')}" if untested else ""
    return line + "."


def _reason(claim: str, holds: bool, checks: Sequence[_Check]) -> str:
    deciding = [check.number for check in checks if holds or not check.holds]
    return f"{claim}: {'supported' if holds else 'not supported'}: {'; '.join(deciding)}"


def _listed(names: Sequence[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _part(report: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What lies under ``keys``; empty where the report lacks it."""
    for key in keys:
        report = report.get(key) or {}
    return report


def _number(value: float | int | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _end(measure: Mapping[str, Any], which: int) -> float | None:
    ends = measure.get("interval")
    return _number(ends[which]) if ends else None


def _largest(values: Sequence[float | int | None]) -> float | None:
    found = [number for number in map(_number, values) if number is not None]
    return max(found, default=None)
