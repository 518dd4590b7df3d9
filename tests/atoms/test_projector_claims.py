"""The rules of the projector's claims, each flipped by its own number, and the page that shows them."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gradatoms.projector.claims import CONTROLS, claims_of
from gradatoms.projector.page import CROSSED, EXAMPLES, write_page

Report = dict[str, Any]
HOSTILE = "$\\frac$<script>alert('x')</script>\x00\ud800日本<img src=//evil onerror=alert(1)> & \""


def measure(value: float, low: float, high: float, null: float = 0.03, p: float = 0.001) -> dict[str, Any]:
    return {"value": value, "interval": [low, high], "null": null, "p": p, "n": 200}


def split(recall: float, accuracy: float) -> dict[str, Any]:
    return {
        "n": 200,
        "recall_at_1": measure(recall, recall - 0.05, recall + 0.05),
        "mrr": measure(0.7, 0.65, 0.75),
        "named": measure(0.6, 0.55, 0.65),
        "concept_accuracy": measure(accuracy, accuracy - 0.05, accuracy + 0.05),
        "two_afc": measure(0.9, 0.85, 0.95, null=0.5),
        "context_capture": measure(0.02, 0.0, 0.04),
    }


def good() -> Report:
    """A report that supports every claim, each number with room to fall."""
    report: Report = {
        "metrics": {
            "roundtrip_terms": {
                **measure(0.5, 0.45, 0.55), "unit": "cosine", "better": "higher", "note": "null: shuffled",
            },
            "capture": {"value": 0, "null": 1, "unit": "share", "better": "lower", "n": 9},
            "brier": {"value": None, "null": None, "unit": "", "better": "lower", "n": 0, "note": ""},
        },
        "splits": {"seen": split(0.6, 0.8), "targets": split(0.5, 0.7), "contexts": split(0.55, 0.75)},
        "controls": {
            name: {
                "recall_at_1": measure(0.04, 0.02, 0.08), "named": measure(0.04, 0.02, 0.08),
                "no_pressure": measure(0.97, 0.95, 0.99),
            }
            for name in CONTROLS
        },
        "baselines": {
            "nearest centroid": {"recall_at_1": measure(0.6, 0.5, 0.7), "concept_accuracy": measure(0.8, 0.7, 0.9)},
            "supervised": {"concept_accuracy": measure(0.99, 0.98, 1.0), "reference": True},
        },
        "chance": {"recall_at_1": 0.03, "concept_accuracy": 0.1},
        "dose": [{"lambda": x, "named": x, "weight": x / 2, "null": 0.02} for x in (1.0, 0.0, 0.5)],
        "calibration": {
            "bins": [{"confidence": 0.2, "accuracy": 0.1, "n": 0}, {"confidence": 0.8, "accuracy": 0.7, "n": 9}],
            "brier": 0.14, "brier_null": 0.25,
        },
        "crossing": {"kinds": ["capital", "sum"], "accuracy": [[None, 0.5], [0.75, None]]},
        "examples": [
            {"prompt": f"prompt {i}", "target": "t", "context": "c", "truth": "l", "said": "s", "code": "x"} for i in range(14)
        ],
        "notes": ["Rows are held out."], "seconds": 12.4, "peak_memory_bytes": 2**31,
    }  # fmt: skip
    hidden = {**split(0.1, 0.1), "recall_among_hidden": measure(0.6, 0.5, 0.7, null=0.25)}
    report["splits"]["concepts"] = hidden
    return report


def changed(path: str, value: object) -> Report:
    """The good report with one number changed; ``path`` has its keys, split by dots."""
    report = good()
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    part: Any = report
    for key in keys:
        part = part[key]
    part[last] = value
    return report


def test_all_is_supported() -> None:
    claims = claims_of(good())
    assert (claims.transmits, claims.unseen_targets, claims.unseen_contexts, claims.unseen_concepts) == (True,) * 4
    assert claims.line == (
        "These numbers support: the projector transmits the gradient's content, and generalises to unseen targets, "
        "contexts and concepts."
    )
    assert len(claims.reasons) == 4


@pytest.mark.parametrize(
    "path, stays, falls, reason",
    [
        *[
            (
                f"controls.{c}.recall_at_1.interval.1",
                0.549,
                0.55,
                rf"not above the highest control \({c}\), up to 0.550",
            )
            for c in CONTROLS
        ],
        ("splits.seen.recall_at_1.interval.0", 0.081, 0.08, r"from 0\.080\) is not above the highest control"),
        ("splits.seen.recall_at_1.p", 0.01, 0.011, r"p of recall@1 0\.011 is above 0\.01"),
        ("splits.seen.context_capture.value", 0.05, 0.051, r"context capture 0\.051 is above"),
        ("controls.gaussian.no_pressure.value", 0.95, 0.949, r"noise described as an atom 0\.051"),
        ("splits.seen.two_afc.interval.0", 0.501, 0.5, r"from 0\.500\) is not above even"),
        ("splits.seen.recall_at_1.interval", [0.5, 0.6], None, "not measured"),
        ("splits.seen.two_afc.value", 0.6, math.nan, "not measured"),
        ("splits.seen.context_capture", {"value": 0.0}, {}, "context capture was not measured"),
        ("controls.zero", {"recall_at_1": measure(0.0, 0.0, 0.0)}, {}, "not measured: zero"),
    ],
)
def test_each_rule_of_transmission_flips_it(path: str, stays: object, falls: object, reason: str) -> None:
    assert claims_of(changed(path, stays)).transmits
    claims = claims_of(changed(path, falls))
    assert (claims.transmits, claims.unseen_targets, claims.unseen_contexts, claims.unseen_concepts) == (False,) * 4
    assert re.search(reason, claims.reasons[0])
    assert claims.reasons[0].count(";") == 0, "only the number that failed has decided"
    assert claims.line == (
        "These numbers do not support: the projector transmits the gradient's content, or generalises to unseen targets, "
        "contexts or concepts."
    )


def test_a_control_nobody_planned_counts_and_a_missing_one_too() -> None:
    report = good()
    report["controls"]["of my own"] = {"recall_at_1": measure(0.6, 0.5, 0.7)}
    assert "of my own" in claims_of(report).reasons[0]
    assert not claims_of(report).transmits
    report = good()
    del report["controls"]["sign flip"]
    assert not claims_of(report).transmits


@pytest.mark.parametrize("name", ["targets", "contexts"])
@pytest.mark.parametrize(
    "path, stays, falls, reason",
    [
        ("recall_at_1.interval.0", 0.031, 0.03, "not above chance 0.030"),
        ("recall_at_1.null", 0.44, 0.51, "not above chance 0.510"),
        ("recall_at_1.p", 0.01, 0.02, "p of recall@1 0.020 is above 0.01"),
        ("concept_accuracy.value", 0.6, 0.599, "concept accuracy 0.599 is below 0.75 of the seen 0.800"),
        ("concept_accuracy", {"value": 0.7}, {}, "concept accuracy was not measured"),
    ],
)
def test_each_rule_of_a_split_flips_that_split_alone(
    name: str, path: str, stays: object, falls: object, reason: str
) -> None:
    assert getattr(claims_of(changed(f"splits.{name}.{path}", stays)), f"unseen_{name}") is True
    claims = claims_of(changed(f"splits.{name}.{path}", falls))
    found = {split: getattr(claims, f"unseen_{split}") for split in ("targets", "contexts", "concepts")}
    assert found == {split: split != name for split in found}
    assert claims.transmits
    assert any(reason in r and f"unseen {name}: not supported" in r for r in claims.reasons)
    assert f"they do not support generalisation to unseen {name}." in claims.line


@pytest.mark.parametrize(
    "path, stays, falls, reason",
    [
        ("recall_among_hidden.interval.0", 0.251, 0.25, "not above chance 0.250"),
        ("recall_among_hidden.null", 0.49, 0.5, "not above chance 0.500"),
        ("two_afc.interval.0", 0.51, 0.5, "not above even 0.500"),
        ("recall_among_hidden", measure(0.6, 0.5, 0.7), {}, "not measured"),
    ],
)
def test_each_rule_of_unseen_concepts_flips_it(path: str, stays: object, falls: object, reason: str) -> None:
    assert claims_of(changed(f"splits.concepts.{path}", stays)).unseen_concepts is True
    claims = claims_of(changed(f"splits.concepts.{path}", falls))
    assert claims.unseen_concepts is False and claims.unseen_targets and claims.unseen_contexts
    assert any(reason in r for r in claims.reasons)
    assert claims.line == (
        "These numbers support: the projector transmits the gradient's content, and generalises to unseen targets and "
        "contexts; they do not support generalisation to unseen concepts."
    )


@pytest.mark.parametrize("rows, tested", [(9, False), (10, True)])
def test_a_small_split_decides_nothing(rows: int, tested: bool) -> None:
    claims = claims_of(changed("splits.concepts.n", rows))
    assert claims.unseen_concepts is (True if tested else None)
    assert ("; not tested: unseen concepts." in claims.line) is not tested
    report = good()
    report["splits"] = {"seen": report["splits"]["seen"]}
    claims = claims_of(report)
    assert claims.transmits and claims.unseen_targets is claims.unseen_contexts is claims.unseen_concepts is None
    assert claims.line.endswith("the gradient's content; not tested: unseen targets, contexts and concepts.")


def test_an_empty_report_supports_nothing() -> None:
    claims = claims_of({})
    assert not claims.transmits
    assert claims.unseen_targets is claims.unseen_contexts is claims.unseen_concepts is None


@pytest.mark.parametrize("score, named", [(0.82, False), (0.8201, True)])
def test_a_better_baseline_is_named(score: float, named: bool) -> None:
    claims = claims_of(changed("baselines.nearest centroid.concept_accuracy.value", score))
    assert claims.transmits
    assert ("nearest centroid" in claims.line and "the words add no accuracy over it" in claims.line) is named
    assert "supervised" not in claims.line, "a reference is no baseline"


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps elements, the ids, and the text of each element."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1] if self.open else "", data.strip()))

    def shown(self) -> list[str]:
        return [text for tag, text in self.text if tag not in ("title", "style")]


def page_of(report: Report, folder: Path) -> tuple[str, Page]:
    path = folder / "page.html"
    write_page(report, path)
    text = path.read_text(encoding="utf-8")
    assert [p.name for p in folder.iterdir()] == ["page.html"]
    return text, Page(text)


def test_the_claim_is_the_first_line_and_every_part_is_there(tmp_path: Path) -> None:
    report = good()
    claims = claims_of(report)
    text, page = page_of(report | {"claim": claims.line, "reasons": claims.reasons}, tmp_path)
    shown = page.shown()
    assert shown[0] == claims.line
    assert shown[1 : 1 + len(claims.reasons)] == claims.reasons
    headings = [t for tag, t in page.text if tag == "h2"]
    assert headings == ["Key numbers", "Plots", "Splits", "Controls", "Baselines", "Examples", "How it was measured"]
    assert sum(tag == "svg" for tag, _ in page.tags) == 5
    assert "0.500" in shown and "0.450 to 0.550" in shown and "Peak memory was 2.00 GiB." in shown
    assert f"prompt {EXAMPLES - 1}" in shown and f"prompt {EXAMPLES}" not in shown
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)), "two figures share an id"
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert used and set(used) <= set(ids)


def hostile(value: Any) -> Any:
    """Every text of a report, keys that are names among them, made hostile."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return {key: hostile(v) for key, v in value.items()} if isinstance(value, dict) else value


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    report = hostile(good() | {"claim": "Claim ", "reasons": ["Reason "]})
    for part in ("metrics", "splits", "controls", "baselines"):
        report[part] = report[part] | {f"{key}{HOSTILE}": value for key, value in report[part].items()}
    text, page = page_of(report, tmp_path)
    assert page.shown()[0].startswith("Claim $\\frac$<script>alert('x')")
    names = {tag for tag, _ in page.tags}
    assert "svg" in names and not names & {"script", "img", "iframe", "object", "link", "foreignobject"}
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    outside = [v for _, attrs in page.tags for a, v in attrs.items() if a in ("href", "src", "xlink:href")]
    assert all(v is not None and v.startswith(("#", "data:image/png")) for v in outside)
    assert "default-src 'none'" in text and "&lt;script&gt;" in text


PARTS = ("metrics", "splits", "controls", "baselines", "chance", "dose", "calibration", "crossing", "examples")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(good() | {"claim": "Claim."}, tmp_path_factory.mktemp("whole"))[1]


@pytest.mark.parametrize("part", ["splits", "controls", "baselines", "chance", "calibration"])
def test_a_missing_part_is_left_out(part: str, whole: Page, tmp_path: Path) -> None:
    report = good() | {"claim": "Claim."}
    del report[part]
    _, page = page_of(report, tmp_path)
    assert 100 < len(page.tags) < len(whole.tags)


@pytest.mark.parametrize("rest", [{}, dict.fromkeys(PARTS), dict.fromkeys((*PARTS, "notes", "seconds", "reasons"))])
def test_a_report_with_only_a_claim_is_a_page(rest: Report, tmp_path: Path) -> None:
    _, page = page_of({"claim": "Nothing was measured."} | rest, tmp_path)
    assert page.shown() == ["Nothing was measured."]


@pytest.mark.parametrize("kinds, drawn", [(CROSSED, True), (CROSSED + 1, False)])
def test_a_large_matrix_is_left_out(kinds: int, drawn: bool, tmp_path: Path) -> None:
    crossing = {"kinds": [f"kind {i}" for i in range(kinds)], "accuracy": [[0.5] * kinds] * kinds}
    _, page = page_of({"claim": "Claim.", "crossing": crossing}, tmp_path)
    assert any(tag == "svg" for tag, _ in page.tags) is drawn


def test_the_same_report_gives_the_same_page(tmp_path: Path) -> None:
    report = {part: good()[part] for part in ("metrics", "dose", "crossing")}
    assert page_of(report, tmp_path)[0] == page_of(report, tmp_path)[0]
