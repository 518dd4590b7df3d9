"""What ``gradient_atoms_paper.py`` found, beside the paper's tables, as Markdown from the JSON files of its stages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gradatoms.weight_steps import WAYS
from instructions.detectors import BEHAVIOURS

PAPER: dict[str, Any] = {
    "coherent": {"> 0.5": 5, "> 0.1": 43, "of": 500},
    "steering": {
        "yes or no": (39, 51, 0), "code": (42, 58, 28), "missing input": (50, 55, 0), "bulleted list": (33, 94, 0),
        "numbered list": (58, 59, 8),
    },
}  # fmt: skip
"""Its tables 1 and 4: atoms by coherence; baseline, best up, best down, %."""


def report(out: Path, models: Iterable[str], settings: dict[str, Any]) -> str:
    """Everything beside the paper's tables.

    Args:
        models: names of folders in ``out``.
        settings: ``rank`` of the LoRA, number of ``atoms``, ``alpha``; ``top`` rows of an atom of which a share of ``pure`` is of one task.
    """
    tune = json.loads((out / "tune.json").read_text(encoding="utf-8"))
    lines = [
        "# Gradient Atoms in small", "",
        f"SmolLM2-135M-Instruct; a LoRA of rank {settings['rank']} on q and v, one pass over the documents in {tune['seconds']:.0f} s "
        f"({tune['first']:.2f} → {tune['last']:.2f} nats a token). {settings['atoms']} atoms.", "",
    ]  # fmt: skip
    for name in models:
        told = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in (out / name).glob("*.json")}
        if {"gradients", "atoms", "discovery", "discovery of few"} <= told.keys():
            lines += [f"## At the {name} model", "", *_found(told, settings), *_steered(told)]
    if (out / "retraining.json").exists():
        lines += _retrained(json.loads((out / "retraining.json").read_text(encoding="utf-8")))
    return "\n".join(lines) + "\n"


def _found(told: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    a, d, few = told["atoms"], told["discovery"], told["discovery of few"]
    best = a["by_alpha"][str(settings["alpha"])]
    top, pure = settings["top"], f"{100 * settings['pure']:.0f} %"
    return [
        f"Seconds: curvature {told['gradients']['curvature']:.0f}, projected gradients {told['gradients']['harvest']:.0f} "
        f"({told['gradients']['d']} components), eight fits and their checks {a['seconds']:.0f}.", "",
        "| α | documents an atom | coherence above 0.5 | above 0.1 | of | random sets' highest |", f"|{'---|' * 6}",
        *(f"| {alpha} | {r['documents']:.1f} | {r['> 0.5']} | {r['> 0.1']} | {r.get('scored', 0)} | {number(r.get('null_highest'))} |"
          for alpha, r in a["by_alpha"].items()),
        f"| paper, 0.1 | | {PAPER['coherent']['> 0.5']} | {PAPER['coherent']['> 0.1']} | 500 | |", "",
        f"Highest: {', '.join(f'{c:.3f}' for c in best['best'])}. Verdicts: {d['real']} real, {d['weak']} weak, {d['noise']} noise.", "",
        f"On documents that the fit did not see: {d['pure']} of {d['scored']} atoms are pure ({pure} of the top {top} of one "
        f"task; shuffled {d['null_pure']}); of the few, {few['pure']} of {few['scored']} ({few['null_pure']}), {few['real']} real.", "",
        f"| task | F1 of its best of {settings['atoms']} atoms | shuffled | of the few | shuffled | precision of top {top} |",
        f"|{'---|' * 6}",
        *(f"| {name} | {r['f1']:.2f} | {d['f1_null'][name]['f1']:.2f} | {few['f1'][name]['f1']:.2f} | "
          f"{few['f1_null'][name]['f1']:.2f} | {number(few['precision_top'].get(name))} |" for name, r in d["f1"].items()), "",
    ]  # fmt: skip


def _steered(told: dict[str, Any]) -> list[str]:
    ways = (*WAYS, "together", "random", "activation")
    lines = [
        "Rate of the behaviour, % of 100 questions: highest / lowest with perplexity at most 10 % higher.", "",
        f"| behaviour | plain | {' | '.join(ways)} | paper: plain, up, down |", f"|{'---|' * (len(ways) + 3)}",
    ]  # fmt: skip
    for behaviour in BEHAVIOURS:
        rows = told.get(f"steer {behaviour}", [])
        if not rows:
            continue
        plain = next(r for r in rows if r["way"] == "plain")
        cells = []
        for way in ways:
            tried = [r for r in rows if r["way"] == way]
            fine = [plain, *(r for r in tried if r["perplexity"] <= 1.1 * plain["perplexity"])]
            rates = [100 * r["rate"] for r in fine]
            cells.append(f"{max(rates):.0f} / {min(rates):.0f}" if tried else "–")
        paper = " ".join(map(str, PAPER["steering"][behaviour]))
        lines.append(
            f"| {behaviour} (atom {plain['atom']}) | {100 * plain['rate']:.0f} | {' | '.join(cells)} | {paper} |"
        )
    return [*lines, ""]


def _retrained(told: dict[str, Any]) -> list[str]:
    low, high = told["interval"]
    null_low, null_high = told["null_interval"]
    trained = float(np.mean([r["untrained"] - r["whole"] for r in told["rows"]]))
    return [
        "## Training again", "",
        f"400 documents, 12 atoms; without an atom's {told['config']['drop']} documents its held-out ones lose {told['effect']:+.3f} nats "
        f"a document ({low:+.3f} to {high:+.3f}) more than without random ones; null {told['null']:+.3f} ({null_low:+.3f} to "
        f"{null_high:+.3f}). Training on all gains {trained:.2f}.", "",
        "| atom | held out | untrained | all | without its documents | without random ones |", f"|{'---|' * 6}",
        *(f"| {r['atom']} | {r['held']} | {r['untrained']:.2f} | {r['whole']:.2f} | {r['without_own']:.2f} | "
          f"{np.mean(r['without_random']):.2f} |" for r in told["rows"]), "",
    ]  # fmt: skip


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
