"""The projector's report as one HTML page: the claim first, then its numbers, plots and examples, then how it was measured.

The page is one file without scripts or links; its plots are SVG. Prompts, labels and names are other people's text: all of
it is escaped, and a content security policy lets nothing run or load.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXAMPLES = 12
"""Descriptions shown."""
CROSSED = 60
"""Most concepts that the matrix of gradients and contexts is drawn for."""

_INK, _BLUE, _TEAL, _GREEN, _PALE, _GREY, _RED = (
    "#1a202c", "#2b6cb0", "#4fa3a5", "#b7791f", "#ead2a4", "#a0aec0", "#c53030",
)  # fmt: skip
_STYLE = """
:root { color-scheme: light; }
body { margin: 2rem auto; max-width: 1000px; padding: 0 1rem; background: #fff; color: #1a202c;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .75rem; font-size: 1.35rem; line-height: 1.35; font-weight: 600; }
h2 { margin: 2.25rem 0 .5rem; font-size: 1.1rem; }
ul, figcaption, caption { color: #4a5568; font-size: .875rem; }
ul { padding-left: 1.1rem; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .25rem; text-align: left; }
th, td { padding: .35rem 1rem .35rem 0; border-bottom: 1px solid #e2e8f0; text-align: left; vertical-align: top; }
th { color: #4a5568; font-weight: 600; }
td { min-width: 4.5rem; overflow-wrap: anywhere; }
.number { min-width: 0; padding-right: .75rem; text-align: right; }
td.number { overflow-wrap: normal; white-space: nowrap; }
figure { margin: 1rem 0 1.75rem; }
svg { display: block; max-width: 100%; height: auto; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_SPOKEN = {
    "mrr": "MRR",
    "two_afc": "gradient over context",
    "recall_among_hidden": "recall@1, held-out labels",
}
_TABLES = (
    ("Splits", "splits", ("recall_at_1", "recall_among_hidden", "mrr", "named", "concept_accuracy", "two_afc", "context_capture")),
    ("Controls", "controls", ("recall_at_1", "named", "no_pressure")),
    ("Baselines", "baselines", ("recall_at_1", "mrr", "concept_accuracy")),
)  # fmt: skip


def write_page(report: Mapping[str, Any], path: str | Path) -> None:
    """Write the page; what the report lacks is left out.

    Args:
        report: ``claim``, ``reasons``, ``metrics``, ``splits``, ``controls``, ``baselines``, ``chance``, ``dose``,
            ``calibration``, ``crossing``, ``examples``, ``notes``, ``seconds``, ``peak_memory_bytes``.
        path: the HTML file; it is replaced whole.
    """
    claim = str(report.get("claim") or "No claim was decided.")
    body = "\n".join(_body(report, claim))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(claim)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    # A prompt out of JSON can hold half a surrogate pair, which no encoding has.
    partial.write_text(page, encoding="utf-8", errors="replace")
    os.replace(partial, path)


def _body(report: Mapping[str, Any], claim: str) -> Iterator[str]:
    yield f"<h1>{escape(claim)}</h1>"
    yield _list(report.get("reasons") or ())
    if report.get("metrics"):
        yield "<h2>Key numbers</h2>"
        yield _metrics(report["metrics"])
    figures = list(_figures(report))
    if figures:
        yield "<h2>Plots</h2>"
        yield from figures
    for title, part, columns in _TABLES:
        if report.get(part):
            yield f"<h2>{title}</h2>"
            yield _measures(report[part], columns)
    if report.get("examples"):
        yield "<h2>Examples</h2>"
        yield _examples(report["examples"][:EXAMPLES])
    made = [*(report.get("notes") or ()), *_cost(report)]
    if made:
        yield "<h2>How it was measured</h2>"
        yield _list(made)


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{_spoken(name)} {'↑' if m.get('better') == 'higher' else '↓'}",
            *(_number(m.get("value")), _range(m), _number(m.get("null")), _number(m.get("p")), _text(m.get("n"))),
            "; ".join(str(m[key]) for key in ("unit", "note") if m.get(key)),
        ]
        for name, m in metrics.items()
    ]
    head = ["metric", "value", "95 % interval", "null", "p", "n", "unit and note"]
    return _table(head, rows, range(1, 6), "↑ higher is better, ↓ lower is better.")


def _measures(part: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A row a split, control or baseline; a column that none of them has is left out."""
    columns = [column for column in columns if any(row.get(column) for row in part.values())]
    sized = any("n" in row for row in part.values())
    rows = [
        [
            name + (" (reference)" if row.get("reference") else ""),
            *([_text(row.get("n"))] if sized else []),
            *(_measure(row.get(column) or {}) for column in columns),
        ]
        for name, row in part.items()
    ]
    head = ["", *(["n"] if sized else []), *map(_spoken, columns)]
    return _table(head, rows, range(1, len(head)), "Value, and its 95 % interval below.")


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    head = {"prompt": "prompt", "target": "target", "context": "context", "truth": "true label", "said": "said"}
    head["code"] = "sparse code"
    rows = [[_text(example.get(key)) for key in head] for example in examples]
    return _table(list(head.values()), rows, (), "The gradient of prompt and target, described inside the context.")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int], caption: str) -> str:
    """A table of plain text, which is escaped here; numbers keep their line breaks."""

    def cell(tag: str, column: int, text: str) -> str:
        if column not in numeric:
            return f"<{tag}>{escape(text)}</{tag}>"
        return f'<{tag} class="number">{escape(text).replace(chr(10), "<br>")}</{tag}>'

    def line(tag: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(cell(tag, column, text) for column, text in enumerate(cells))}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>\n<thead>{line("th", head)}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(str(item))}</li>' for item in items)}</ul>" if items else ""


def _cost(report: Mapping[str, Any]) -> Iterator[str]:
    if report.get("seconds") is not None:
        yield f"It took {report['seconds']:.0f} s."
    if report.get("peak_memory_bytes") is not None:
        yield f"Peak memory was {report['peak_memory_bytes'] / 2**30:.2f} GiB."


def _measure(measure: Mapping[str, Any]) -> str:
    return _number(measure.get("value")) + (f"\n{_range(measure)}" if measure.get("interval") else "")


def _range(measure: Mapping[str, Any]) -> str:
    ends = measure.get("interval")
    return f"{_number(ends[0])} to {_number(ends[1])}" if ends else "–"


def _number(value: float | int | None) -> str:
    """Three decimals; a dash for what was not measured."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _text(value: object) -> str:
    return "–" if value is None or value == "" else str(value)


def _spoken(name: str) -> str:
    return _SPOKEN.get(name, name.replace("_at_1", "@1").replace("_", " "))


def _figures(report: Mapping[str, Any]) -> Iterator[str]:
    """The plots that the report has numbers for."""
    for plot, caption in (
        (_recall, "Recall@1 on the split seen, whiskers: 95 % intervals. References were given what the others must find."),
        (_per_split, "Unseen examples, targets, contexts and concepts; red: nulls, whiskers: 95 % intervals."),
        (_dose, "Dose: an atom is added to a push with weight λ; how often it is named and how much of it is stated."),
        (_calibration, "Calibration: how often a description of some confidence is right; dots are sized by their rows."),
        (_crossing, "Gradients of one concept described inside contexts of another; grey: no such rows."),
    ):  # fmt: skip
        figure = plot(report)
        if figure is not None:
            yield f"<figure>{_svg(figure, plot.__name__)}<figcaption>{escape(caption)}</figcaption></figure>"


def _svg(figure: Figure, name: str) -> str:
    """A figure as an element of the page; its ids begin with ``name``, so that no two figures share one."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # Labels of any script: the reader's browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    text = buffer.getvalue()
    # In tags only: what a label says stays as it is.
    ids = re.compile(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)')
    return re.sub(r"<[^>]*>", lambda tag: ids.sub(f"{name}-", tag[0]), text[text.index("<svg") :])


def _blank(width: float | int, height: float | int) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _recall(report: Mapping[str, Any]) -> Figure | None:
    """A bar each: the projector, baselines, references, controls."""
    own = _seen(report).get("recall_at_1")
    if not own:
        return None
    bars = [("projector", own, _BLUE)]
    for reference, colour in ((False, _GREEN), (True, _PALE)):
        bars += [(_titled(n, row), row.get("recall_at_1") or {}, colour) for n, row in _baselines(report, reference)]
    controls = (report.get("controls") or {}).items()
    bars += [(f"{_plain(name)} (control)", row.get("recall_at_1") or {}, _GREY) for name, row in controls]
    bars = [bar for bar in bars if bar[1].get("value") is not None]
    figure, axes = _blank(9, 0.34 * len(bars) + 1)
    for place, (_, measure, colour) in enumerate(bars):
        low, high = _ends(measure)
        axes.barh(place, measure["value"], color=colour, height=0.64)
        axes.plot([low, high], [place, place], color=_INK, linewidth=1.3)
        axes.text(high + 0.01, place, _number(measure["value"]), va="center", fontsize=9)
    chance = (report.get("chance") or {}).get("recall_at_1")
    if chance is not None:
        axes.axvline(chance, color=_RED, linestyle="--", linewidth=1.2, label=f"chance {_number(chance)}")
        axes.legend(loc="lower right", frameon=False)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("recall@1, share of rows")
    return figure


def _per_split(report: Mapping[str, Any]) -> Figure | None:
    """Two bars a split; the best baseline stands beside those of the split it is measured on."""
    splits = {name: split for name, split in (report.get("splits") or {}).items() if split}
    if not splits:
        return None
    figure, axes = _blank(9, 3.3)
    for shift, key, colour in ((-0.2, "recall_at_1", _BLUE), (0.2, "concept_accuracy", _TEAL)):
        shown = [
            (i + shift, s[key]) for i, s in enumerate(splits.values()) if (s.get(key) or {}).get("value") is not None
        ]
        axes.bar([x for x, _ in shown], [m["value"] for _, m in shown], width=0.36, color=colour, label=_spoken(key))
        for x, measure in shown:
            axes.plot([x, x], _ends(measure), color=_INK, linewidth=1.3)
        marks = [(x, m["null"]) for x, m in shown if m.get("null") is not None]
        label = "null" if shift > 0 else None
        axes.plot(*np.reshape(marks, (-1, 2)).T, "_", color=_RED, markersize=22, markeredgewidth=2.5, label=label)
        plain = [(row.get(key) or {}, name) for name, row in _baselines(report, reference=False)]
        best = max(((m["value"], name) for m, name in plain if m.get("value") is not None), default=None)
        if best and "seen" in splits:
            place, label = list(splits).index("seen") + shift, f"best baseline,\n{_spoken(key)}:\n{_plain(best[1])}"
            axes.plot(place, best[0], "D" if shift < 0 else "o", color=_GREEN, markeredgecolor="white", label=label)
    names = [
        f"{'' if name == 'seen' else 'unseen '}{_plain(name)}\nn = {_text(s.get('n'))}" for name, s in splits.items()
    ]
    axes.set_xticks(range(len(splits)), names, parse_math=False)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of rows")
    for text in axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)
    return figure


def _dose(report: Mapping[str, Any]) -> Figure | None:
    points = sorted(report.get("dose") or (), key=lambda point: point["lambda"])
    if not points:
        return None
    figure, axes = _blank(9, 3)
    for key, style, colour, label in (
        ("named", "o-", _BLUE, "named, share of rows"),
        ("weight", "s-", _TEAL, "stated weight, mean"),
        ("null", "o:", _RED, "null of named"),
    ):
        y = [_finite(point.get(key)) for point in points]
        axes.plot([point["lambda"] for point in points], y, style, color=colour, label=label, markersize=5)
    axes.set_ylim(-0.02, max(1.02, axes.get_ylim()[1]))
    axes.set_xlabel("λ, weight of the added atom")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    return figure


def _calibration(report: Mapping[str, Any]) -> Figure | None:
    found = report.get("calibration") or {}
    bins = [b for b in found.get("bins") or () if b["n"]]
    if not bins:
        return None
    figure, axes = _blank(4.6, 4.4)
    x, y, n = ([b[key] for b in bins] for key in ("confidence", "accuracy", "n"))
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    axes.plot(x, y, color=_BLUE, linewidth=1)
    axes.scatter(x, y, s=[20 + 160 * rows / max(n) for rows in n], color=_BLUE, alpha=0.85)
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="confidence", ylabel="share right", aspect="equal")
    axes.set_title(f"Brier {_number(found.get('brier'))}, null {_number(found.get('brier_null'))}", fontsize=10)
    return figure


def _crossing(report: Mapping[str, Any]) -> Figure | None:
    from matplotlib import colormaps

    found = report.get("crossing") or {}
    kinds = [_plain(kind) for kind in found.get("kinds") or ()]
    if not 0 < len(kinds) <= CROSSED:
        return None
    share = np.asarray([[_finite(cell) for cell in row] for row in found["accuracy"]], dtype=float)
    side = min(7.0, max(2.5, 0.42 * len(kinds)))
    figure, axes = _blank(side + 2.6, side + 1.3)
    blues = colormaps["Blues"].with_extremes(bad="#cbd5e0")
    image = axes.imshow(share, cmap=blues, vmin=0, vmax=1, interpolation="none")
    size = float(np.clip(160 / len(kinds), 5, 9))
    axes.set_xticks(range(len(kinds)), kinds, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=size, parse_math=False)
    axes.set_xlabel("concept of the context")
    axes.set_ylabel("concept of the gradient")
    figure.colorbar(image, ax=axes, shrink=0.6, label="concept right, share of rows")
    if len(kinds) <= 12:
        for (row, column), value in np.ndenumerate(share):
            if np.isfinite(value):
                shade = "white" if value > 0.6 else _INK
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=shade)
    return figure


def _seen(report: Mapping[str, Any]) -> Mapping[str, Any]:
    return (report.get("splits") or {}).get("seen") or {}


def _baselines(report: Mapping[str, Any], reference: bool) -> list[tuple[str, Mapping[str, Any]]]:
    """Plain baselines, or those that were given what the others must find."""
    rows = (report.get("baselines") or {}).items()
    return [(name, row) for name, row in rows if bool(row.get("reference")) == reference]


def _titled(name: str, row: Mapping[str, Any]) -> str:
    return f"{_plain(name)} ({'reference' if row.get('reference') else 'baseline'})"


def _ends(measure: Mapping[str, Any]) -> tuple[float, float]:
    low, high = measure.get("interval") or (measure["value"], measure["value"])
    return float(low), float(high)


def _finite(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _plain(label: str) -> str:
    """A label for a plot: one line, at most 40 characters, nothing that cannot be drawn."""
    text = " ".join(str(label).encode("utf-8", "replace").decode().split())
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= 40 else text[:39] + "…"
