"""The report's two plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VERDICTS = {"real": "#2b6cb0", "weak": "#b7791f", "noise": "#a0aec0"}


def plot_metrics(metrics: dict[str, Any], path: Path) -> None:
    """Scores between 0 and 1 as bars, each with its null as a mark."""
    from matplotlib.figure import Figure

    shown = {
        name: m
        for name, m in metrics.items()
        if m["value"] is not None and m["null"] is not None and -0.2 <= m["null"] <= 1 and 0 <= m["value"] <= 1
    }
    figure = Figure(figsize=(7.5, 0.42 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    axes.barh(places, [m["value"] for m in shown.values()], color="#2b6cb0", height=0.6, label="held-out rows")
    axes.plot(
        [m["null"] for m in shown.values()],
        places,
        "|",
        color="#c53030",
        markersize=16,
        markeredgewidth=3,
        label="null",
    )
    axes.set_yticks(places, [f"{name} ({'↑' if m['better'] == 'higher' else '↓'})" for name, m in shown.items()])
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *(m["null"] for m in shown.values())) - 0.02, 1.02)
    axes.set_xlabel("score; ↑ higher is better, ↓ lower is better")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def plot_atoms(atoms: list[dict[str, Any]], path: Path) -> None:
    """Density against coherence, an atom a dot, coloured by verdict; the densest real atoms are named."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for verdict, colour in VERDICTS.items():
        chosen = [a for a in atoms if a["verdict"] == verdict and a["coherence"] is not None]
        label = f"{verdict} ({sum(a['verdict'] == verdict for a in atoms)})"
        axes.scatter(
            [a["density"] for a in chosen], [a["coherence"] for a in chosen], s=22, color=colour, alpha=0.8, label=label
        )
    named = sorted(
        (a for a in atoms if a["verdict"] == "real" and a["label"] and a["coherence"]), key=lambda a: -a["coherence"]
    )
    taken: list[float] = []
    for atom in named:
        if all(abs(atom["coherence"] - y) > 0.035 for y in taken) and len(taken) < 12:
            taken.append(atom["coherence"])
            axes.annotate(
                _short(atom["label"]),
                (atom["density"], atom["coherence"]),
                xytext=(5, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
            )
    axes.set_xlabel("density: share of held-out rows the atom is active on")
    axes.set_ylabel("coherence: mean cosine of its top held-out gradients")
    axes.legend(title="verdict (atoms)", frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def plot_sweep(rows: list[dict[str, Any]], varied: list[str], path: Path) -> None:
    """A panel a metric: its value over the last varied setting, a line for each value of the others, nulls dotted."""
    from matplotlib.figure import Figure

    names = [n for n in ("step_recovered", "fvu", "stability", "real_share") if any(n in r["metrics"] for r in rows)]
    *others, along = varied
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: r["settings"][along]):
        label = ", ".join(f"{name} {row['settings'][name]}" for name in others) or "all"
        lines.setdefault(label, []).append(row)
    figure = Figure(figsize=(3.4 * len(names), 3.4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for number, (label, members) in enumerate(sorted(lines.items())):
            colour = f"C{number}"
            x = [m["settings"][along] for m in members]
            axes.plot(x, [m["metrics"][name]["value"] for m in members], "o-", color=colour, label=label, markersize=4)
            axes.plot(x, [m["metrics"][name]["null"] for m in members], ":", color=colour)
        axes.set_title(f"{name} ({'↑' if rows[0]['metrics'][name]['better'] == 'higher' else '↓'})", fontsize=10)
        axes.set_xlabel(along)
        axes.set_ylim(min(0, axes.get_ylim()[0]), 1.02)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8, title="dotted: null")
    figure.savefig(path, dpi=130)


def _short(label: str) -> str:
    text = label.replace("$", r"\$")
    return text if len(text) <= 34 else text[:33] + "…"
