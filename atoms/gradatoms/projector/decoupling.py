"""Does the description follow the gradient or the context? Gradients of one kind, described inside contexts of another.

Every row is held out from the fit, from the labels' evidence and from the projector's training. Its context is another
held-out row's prompt, of another leading atom and, where the store has concepts, another concept.

Controls: ``shuffled`` gives the row's context the gradient of some other row, and is scored against the row's own label;
``no gradient`` leaves the soft tokens out; ``noise`` puts a Gaussian direction of the same norm in. Chance is the share
of the most frequent leading label. Baseline: the atom with the largest dot product with the centred push.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradatoms.dictionary.coding import leading
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.provenance import folder_of, store_of
from gradatoms.dictionary.pushes import Pushes, held_out_mask
from gradatoms.errors import ConfigError
from gradatoms.gradients.task import examples_of
from gradatoms.metric import Metric
from gradatoms.progress import Progress, silent
from gradatoms.projector.describe import Describer, Said


@dataclass(frozen=True)
class Decoupled:
    """One row described inside another's context."""

    prompt: str
    target: str
    context: str
    truth: str
    """Label of the row's leading atom."""
    said: str


@dataclass(frozen=True)
class DecouplingReport:
    """Metrics, and some of the rows."""

    metrics: dict[str, Metric]
    examples: list[Decoupled] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": {k: m.to_dict() for k, m in self.metrics.items()},
            "examples": [vars(e) for e in self.examples],
        }


def evaluate_decoupling(
    describer: Describer,
    *,
    store_path: str | Path | None = None,
    rows: int = 150,
    seed: int = 0,
    progress: Progress = silent,
) -> DecouplingReport:
    """Measure decoupled descriptions on held-out rows.

    Raises:
        ConfigError: fewer than two held-out rows with a labelled atom.
    """
    atoms, labels = describer.atoms, describer.labels
    rng = np.random.default_rng(seed)
    store = store_of(atoms, store_path)
    split = atoms.config["holdout"]
    mask = held_out_mask(store, split["fraction"], split["seed"])
    lead = leading(load_codes(folder_of(atoms) / "codes.h5"))
    usable = np.flatnonzero(mask & np.isin(lead, list(labels)))
    by_id = {r.id: e for r, e in zip(store.examples, examples_of(store), strict=True)}
    owner = [by_id[int(i)] for i in store.rows["example"]]
    if len(set(lead[usable].tolist())) < 2:
        raise ConfigError(
            f"expected held-out rows of at least two labelled atoms, found {len(usable)} rows; harvest more examples"
        )
    chosen = rng.choice(usable, min(rows, len(usable)), replace=False)
    P = Pushes(store, hook=atoms.hook, rows=chosen).all()
    contexts = []
    for row in chosen:
        other = usable[lead[usable] != lead[row]]
        strange = [c for c in other.tolist() if owner[row].concept is None or owner[c].concept != owner[row].concept]
        contexts.append(int(rng.choice(strange or other)))
    prompts = [owner[c].prompt for c in contexts]
    shift = np.roll(np.arange(len(chosen)), 1 + len(chosen) // 3)
    noise = rng.standard_normal(P.shape).astype(np.float32)
    noise *= np.linalg.norm(atoms.center(P), axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    runs: list[list[Said]] = []
    arms = ((P, False), (P, True), (P[shift], False), (None, False), (noise + atoms.b_dec, False))
    for i, (pushes, free) in enumerate(arms):
        runs.append(describer.say(pushes, prompts, free=free))
        progress("projector eval", i + 1, len(arms))
    real, free_run, shuffled, none, noisy = runs
    truth = lead[chosen]
    fitted = lead[np.flatnonzero(~mask & (lead >= 0))]
    counts = np.bincount(fitted, minlength=len(atoms))
    chance = float((truth == counts.argmax()).mean())
    baseline = (atoms.center(P) @ atoms.W_dec.T).argmax(axis=1)
    n = len(chosen)

    def right(said: list[Said]) -> float:
        return float(np.mean([_named(s) == t for s, t in zip(said, truth, strict=True)]))

    found = {
        "decoupled_exact": Metric(
            value=right(real), null=right(shuffled), unit="share of rows", better="higher", n=n,
            note=f"leading atom's label named; null: shuffled gradients; no gradient {right(none):.3f}, chance (most frequent label) "
            f"{chance:.3f}, nearest-atom baseline {float((baseline == truth).mean()):.3f}",
        ),
        "decoupled_free": Metric(
            value=right(free_run), null=right(shuffled), unit="share of rows", better="higher", n=n,
            note="the same without restricting what the model may write; null: shuffled gradients, within the grammar",
        ),
        "context_capture": Metric(
            value=float(np.mean([_named(s) == lead[c] for s, c in zip(real, contexts, strict=True)])),
            null=float(np.mean([_named(s) == lead[c] for s, c in zip(none, contexts, strict=True)])),
            unit="share of rows", better="lower", n=n, note="the context's own leading label named instead; null: no gradient",
        ),
        "noise_false_positives": Metric(
            value=float(np.mean([bool(s.terms) for s in noisy])), null=float(np.mean([bool(s.terms) for s in real])),
            unit="share of rows", better="lower", n=n, note="noise described as an atom; null: real gradients described as an atom",
        ),
    }  # fmt: skip
    concept_of = _majority_concepts(lead, mask, [e.concept for e in owner])
    if concept_of:
        concepts = [owner[r].concept for r in chosen]

        def by_concept(atoms_named: list[int | None]) -> float:
            return float(
                np.mean([a is not None and concept_of.get(a) == c for a, c in zip(atoms_named, concepts, strict=True)])
            )

        found["decoupled_concept_accuracy"] = Metric(
            value=by_concept([_named(s) for s in real]), null=by_concept([_named(s) for s in shuffled]),
            unit="share of rows", better="higher", n=n,
            note="most frequent concept of the named atom's fitted rows is the row's; scoring only; null: shuffled gradients; "
            f"the code's own leading atom {by_concept(truth.tolist()):.3f}",
        )  # fmt: skip
    examples = [
        Decoupled(owner[r].prompt, owner[r].target, p, labels[int(t)], s.text)
        for r, p, t, s in list(zip(chosen, prompts, truth, real, strict=True))[:10]
    ]
    return DecouplingReport(found, examples)


def _named(said: Said) -> int | None:
    return said.terms[0].atom if said.terms else None


def _majority_concepts(lead: np.ndarray, mask: np.ndarray, concepts: list[str | None]) -> dict[int, str]:
    counts: dict[int, dict[str, int]] = {}
    for row in np.flatnonzero(~mask & (lead >= 0)):
        concept = concepts[row]
        if concept is not None:
            by = counts.setdefault(int(lead[row]), {})
            by[concept] = by.get(concept, 0) + 1
    return {atom: max(by, key=lambda c: (by[c], c)) for atom, by in counts.items()}
