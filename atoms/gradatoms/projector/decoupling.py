"""Does the description follow the gradient or the context? Gradients of every kind, described inside contexts of another.

Every row is held out from the fit, from the labels' evidence and from the projector's training. What is measured:

* ranking (``ranking``): recall@1 and mean reciprocal rank of the leading label among all; the leading label against the
  context's own (2AFC); by permutation of the rows, and by bootstrap over concepts;
* generation: the leading label named; precision, recall and weights of the terms; the context's label named instead
  (capture); noise and no vector described as atoms;
* dose: an atom added to the push in growing amounts, beside a random direction;
* round trip: the push that the description gives back (``roundtrip``).

Controls are read in place of the push (``crossing.CONTROLS``); baselines read the push without any words (``baselines``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gradatoms.dictionary.io import write_json
from gradatoms.errors import ConfigError
from gradatoms.metric import Metric, peak_memory_bytes
from gradatoms.progress import Progress, silent
from gradatoms.projector.baselines import baselines, oracle
from gradatoms.projector.claims import claims_of
from gradatoms.projector.crossing import CONTROLS, PAIR_FROM, SPLITS, Crossing, cross
from gradatoms.projector.describe import Describer, Said
from gradatoms.projector.measures import matched, permuted, ranks, share
from gradatoms.projector.page import write_page
from gradatoms.projector.ranking import Ranker
from gradatoms.projector.roundtrip import TextToPush, round_trip
from gradatoms.projector.rows import Rows, Splits, described, load_rows
from gradatoms.projector.spoken import both_named, calibration, crossing_matrix, named_atoms, term_metrics
from gradatoms.projector.text import compose
from gradatoms.projector.train import splits_of
from gradatoms.projector.unseen import unseen_rankers

DOSES = (0.0, 0.25, 0.5, 1.0, 2.0)
"""λ: what is added of an atom, in units of the unit push."""
FITTED_TEXTS = 2000
"""Training rows that the text map of the round trip is fitted on, at most."""


@dataclass(frozen=True, kw_only=True)
class DecouplingConfig:
    """How much is measured."""

    rows: int = 100
    """Gradients in each split, at most."""
    contexts: int = 12
    """Different prompts used as contexts in each split, at most."""
    controls: int = 40
    """Gradients that each control is read in place of, and that are described freely and at each dose, at most."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "contexts", "controls"):
            if getattr(self, name) < 2:
                raise ConfigError(f"expected {name} of at least 2, got {getattr(self, name)}")


def evaluate_decoupling(
    describer: Describer,
    config: DecouplingConfig | None = None,
    *,
    store_path: str | Path | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure, and write ``report.json`` and ``report.html`` into ``folder`` where one is given.

    Returns:
        ``claim`` (one line: what the numbers support), ``metrics`` by name, ``splits``, ``controls``, ``baselines``, ``dose``,
        ``calibration``, ``crossing``, ``unseen`` (rankers for concepts never trained on), ``examples``, ``notes``.

    Raises:
        ConfigError: too few held-out rows to cross, or ``describer`` is not ``sealed``.
    """
    started = time.perf_counter()
    config = config or DecouplingConfig()
    rows = load_rows(describer.atoms, store_path, seed=describer.reader.projector.config.seed)
    evaluation = _Evaluation(describer, rows, config, progress)
    report = evaluation.report()
    found = claims_of(report)
    report = {"claim": found.line, "claims": _flags(found), "reasons": found.reasons} | report
    report |= {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory_bytes()}
    if folder is not None:
        write_json(folder / "report.json", report)
        write_page(report, folder / "report.html")
    return report


def _flags(found: Any) -> dict[str, bool | None]:
    return {
        name: getattr(found, name) for name in ("transmits", "unseen_targets", "unseen_contexts", "unseen_concepts")
    }


class _Evaluation:
    """One evaluation: the rows, who is read where, and what was said."""

    def __init__(self, describer: Describer, rows: Rows, config: DecouplingConfig, progress: Progress) -> None:
        self.describer, self.rows, self.config = describer, rows, config
        self.atoms = describer.atoms
        self.splits: Splits = splits_of(rows, describer.reader.projector.config)
        words = describer.reader.projector.words
        if words is not None and np.isin(words.units.cpu().numpy(), self.splits.hidden_atoms).any():
            raise ConfigError(
                "expected the projector as it was trained, got one that was told of held-out concepts; open it with sealed=True"
            )
        self.rng = np.random.default_rng([config.seed, 23])
        self.crossings = cross(rows, self.splits, most=config.rows, contexts=config.contexts, rng=self.rng)
        self.kinds = rows.kinds()
        self.owner = rows.concept_of_atoms(rows.fitted)
        self.ranker = Ranker(describer)
        self.columns = np.asarray(self.ranker.atoms)
        self._progress, self._done = progress, 0
        self.said = {name: self._say(c, rows.pushes[c.rows]) for name, c in self.crossings.items()}
        ranked = {name: self.crossings[name] for name in SPLITS}
        self.scores = {name: self._rank(c, rows.pushes[c.rows]) for name, c in ranked.items()}

    def report(self) -> dict[str, Any]:
        """Everything that is measured."""
        seen = self.crossings["seen"]
        few = seen.first(self.config.controls)
        self.random = {
            name: make(self.atoms, self.rows, self.splits, few.rows, self.rng) for name, make in CONTROLS.items()
        }
        controls = {name: self._control(few, pushes) for name, pushes in self.random.items()}
        splits = {name: self._split(name) for name in SPLITS if len(self.crossings[name].rows)}
        read = self._baselines(seen)
        dose = self._dose(few)
        return {
            "metrics": {k: _plain(m) for k, m in self._metrics(splits, controls, few).items()},
            "splits": splits,
            "controls": controls,
            "baselines": read,
            "unseen": self._unseen(),
            "chance": {
                "recall_at_1": float(splits["seen"]["recall_at_1"]["null"]),
                "concept_accuracy": float(splits["seen"]["concept_accuracy"]["null"]),
            },
            "dose": dose,
            "calibration": calibration(
                [s for name in ("seen", "contexts") for s in self.said[name]],
                np.concatenate([self.rows.lead[self.crossings[name].rows] for name in ("seen", "contexts")]),
            ),
            "crossing": crossing_matrix(
                named_atoms(self.said["seen"]) == self.rows.lead[seen.rows],
                self.kinds[seen.rows],
                self.kinds[seen.contexts],
            ),
            "examples": self._examples(),
            "notes": self._notes(),
        }

    def _say(self, crossing: Crossing, pushes: np.ndarray | None, **options: Any) -> list[Said]:
        prompts = [self.rows.prompts[i] for i in crossing.contexts]
        found = self.describer.say(pushes, prompts, **options) if prompts else []
        self._tick()
        return found

    def _rank(self, crossing: Crossing, pushes: np.ndarray | None) -> Float[np.ndarray, "t L"]:
        prompts = [self.rows.prompts[i] for i in crossing.contexts]
        if not prompts:
            return np.zeros((0, len(self.columns)), dtype=np.float32)
        self._tick()
        return self.ranker.without(prompts) if pushes is None else self.ranker.scores(pushes, prompts)

    def _tick(self) -> None:
        self._done += 1
        total = 2 + 2 * len(SPLITS) + 2 * len(CONTROLS) + 1 + 2 * (len(DOSES) - 1)
        self._progress("projector eval", min(self._done, total), total)

    def _split(self, name: str) -> dict[str, Any]:
        crossing, said, scores = self.crossings[name], self.said[name], self.scores[name]
        truth, kinds = self.rows.lead[crossing.rows], self.kinds[crossing.rows]
        inside = self.rows.lead[crossing.contexts]
        named = named_atoms(said)
        own, other = (np.searchsorted(self.columns, atoms) for atoms in (truth, inside))
        every = np.arange(len(truth))
        differ = truth != inside
        right = scores[every, own] > scores[every, other]
        place = ranks(scores, own)
        seed = self.config.seed
        reciprocal = share(1 / place, kinds, seed=seed)
        found = {
            "recall_at_1": matched(self.columns[scores.argmax(axis=1)], truth, kinds, seed=seed),
            "mrr": reciprocal
            | permuted(lambda o: float((1 / ranks(scores, own[o])).mean()), reciprocal["value"], len(own), seed=seed),
            "named": matched(named, truth, kinds, seed=seed),
            "concept_accuracy": self._concepts(named, kinds),
            "two_afc": share(right[differ], kinds[differ], seed=seed) | {"null": 0.5},
            "context_capture": share((named == inside) & (named != truth), kinds, seed=seed),
        }
        if name == "concepts":
            hidden = np.isin(self.columns, self.splits.hidden_atoms)
            among = np.where(hidden, scores, -np.inf).argmax(axis=1)
            found["recall_among_hidden"] = matched(self.columns[among], truth, kinds, seed=seed) | {
                "null": 1 / max(1, int(hidden.sum()))
            }
        return {"n": len(truth)} | found

    def _concepts(self, named: Int[np.ndarray, " t"], kinds: np.ndarray) -> dict[str, Any]:
        """Whether the concept of most fitted rows that the named atom leads is the row's own; for scoring only."""
        return matched(
            np.asarray([self.owner.get(int(a), "") for a in named], dtype=object), kinds, kinds, seed=self.config.seed
        )

    def _control(self, crossing: Crossing, pushes: np.ndarray | None) -> dict[str, Any]:
        """How often what is read in place of the push still gives the row's own label."""
        truth, kinds = self.rows.lead[crossing.rows], self.kinds[crossing.rows]
        said, scores = self._say(crossing, pushes), self._rank(crossing, pushes)
        seed = self.config.seed
        return {
            "recall_at_1": matched(self.columns[scores.argmax(axis=1)], truth, kinds, seed=seed),
            "named": matched(named_atoms(said), truth, kinds, seed=seed),
            "no_pressure": share(np.asarray([not s.terms for s in said]), kinds, seed=seed),
        }

    def _baselines(self, crossing: Crossing) -> dict[str, Any]:
        truth, kinds = self.rows.lead[crossing.rows], self.kinds[crossing.rows]
        own = np.searchsorted(self.columns, truth)
        found: dict[str, Any] = {}
        train, seed = self.splits.train, self.config.seed
        for name, scores in baselines(
            self.describer.loaded, self.atoms, self.rows, train, crossing.rows, seed=seed
        ).items():
            best = self.columns[scores.argmax(axis=1)]
            found[name] = {
                "recall_at_1": matched(best, truth, kinds, seed=seed),
                "mrr": share(1 / ranks(scores, own), kinds, seed=seed),
                "concept_accuracy": self._concepts(best, kinds),
            }
        found["code's leading atom"] = {"concept_accuracy": self._concepts(truth, kinds), "reference": True}
        if self.rows.concepts is not None:
            known = np.asarray(oracle(self.rows, train, crossing.rows, seed=seed), dtype=object)
            found["supervised on concepts (sees them)"] = {
                "concept_accuracy": matched(known, kinds, kinds, seed=seed),
                "reference": True,
            }
        return found

    def _unseen(self) -> dict[str, Any]:
        """Rankers without the language model, on the concepts that were never trained on."""
        crossing = self.crossings["concepts"]
        if len(crossing.rows) < 2:
            return {}
        truth, kinds = self.rows.lead[crossing.rows], self.kinds[crossing.rows]
        hidden = np.isin(self.columns, self.splits.hidden_atoms)
        own = np.searchsorted(self.columns, truth)
        other = np.searchsorted(self.columns, self.rows.lead[crossing.contexts])
        every = np.arange(len(own))
        found = {}
        for name, scores in unseen_rankers(
            self.describer.loaded, self.atoms, self.rows, self.splits.train, crossing.rows, seed=self.config.seed
        ).items():
            among = np.where(hidden, scores, -np.inf).argmax(axis=1)
            found[name] = {
                "recall_at_1": matched(self.columns[scores.argmax(axis=1)], truth, kinds),
                "recall_among_hidden": matched(self.columns[among], truth, kinds),
                "two_afc": share(scores[every, own] > scores[every, other], kinds) | {"null": 0.5},
            }
        return found

    def _metrics(
        self, splits: dict[str, Any], controls: dict[str, Any], few: Crossing
    ) -> dict[str, Metric | dict[str, Any]]:
        seen, crossing, said = splits["seen"], self.crossings["seen"], self.said["seen"]
        pairs = self.crossings["pairs"]
        free = self._say(few, self.rows.pushes[few.rows], free=True)
        truth = self.rows.lead[few.rows]
        up = {"unit": "share of rows", "better": "higher", "note": ""}
        down = up | {"better": "lower"}
        shuffled = "null: rows permuted"
        noise, none = (_rest(controls[c]["no_pressure"]) for c in ("gaussian", "no vector"))
        told = share(np.asarray([bool(s.terms) for s in said]), self.kinds[crossing.rows])["value"]
        centred = self.atoms.center(self.rows.pushes[self.splits.train])
        chosen = np.flatnonzero(self.splits.train)[:: max(1, int(self.splits.train.sum()) // FITTED_TEXTS)]
        texts = TextToPush().fit(
            self.describer.loaded, self._texts(chosen), self.atoms.center(self.rows.pushes[chosen])
        )
        back = round_trip(
            self.atoms,
            self.rows.pushes[crossing.rows],
            [s.terms for s in said],
            [s.text for s in said],
            texts,
            self.rng,
            train_mean=np.asarray(centred.mean(axis=0), dtype=np.float32),
        )
        return {
            "decoupled_recall_at_1": seen["recall_at_1"] | up | {"note": f"leading label first of {len(self.columns)}; {shuffled}"},
            "decoupled_mrr": seen["mrr"] | up | {"unit": "mean reciprocal rank", "note": shuffled},
            "decoupled_two_afc": seen["two_afc"] | up | {"note": "the gradient's label above the context's; null: chance"},
            "decoupled_exact": seen["named"] | up | {"note": f"leading label named; {shuffled}"},
            "decoupled_free": matched(named_atoms(free), truth, self.kinds[few.rows])
            | up
            | {"note": f"the same without restricting what the model may write; {shuffled}"},
            "decoupled_concept_accuracy": seen["concept_accuracy"]
            | up
            | {"note": f"the named atom's most frequent concept is the row's; scoring only; {shuffled}"},
            "context_capture": seen["context_capture"]
            | down
            | {"null": controls["no vector"]["named"]["value"], "note": "the context's label named instead; null: no vector"},
            "noise_false_positives": noise | down | {"null": told, "note": "noise described as an atom; null: gradients so described"},
            "no_vector_false_positives": none | down | {"null": told, "note": "no vector described as an atom; null: as above"},
            "both_named": both_named(
                self.said["pairs"], self.rows.codes[pairs.rows], self.kinds[pairs.rows], seed=self.config.seed
            )
            | up
            | {"note": f"rows with two atoms over {PAIR_FROM}; both named; {shuffled}"},
            **self._catalogue(up),
            **term_metrics(said, self.rows.codes[crossing.rows], self.kinds[crossing.rows], seed=self.config.seed),
            **{name: vars(metric) for name, metric in back.items()},
        }  # fmt: skip

    def _catalogue(self, up: dict[str, Any]) -> dict[str, Any]:
        """Held-out concepts once the projector is told the labels of their atoms (``Describer.name_all``), untrained."""
        crossing, projector = self.crossings["concepts"], self.describer.reader.projector
        sealed = projector.words
        if sealed is None or not len(crossing.rows):
            return {}
        try:
            self.describer.name_all()
            named = named_atoms(self._say(crossing, self.rows.pushes[crossing.rows]))
        finally:
            projector.words = sealed
        kinds, note = (
            self.kinds[crossing.rows],
            "held-out concepts, their atoms' labels given after training; null: rows permuted",
        )
        return {
            "catalogue_exact": matched(named, self.rows.lead[crossing.rows], kinds, seed=self.config.seed)
            | up
            | {"note": note},
            "catalogue_concept_accuracy": self._concepts(named, kinds) | up | {"note": note},
        }

    def _texts(self, chosen: Int[np.ndarray, " c"]) -> list[str]:
        """The descriptions that training rows were to have."""
        atoms, weights = described(self.rows.codes[chosen])
        labels = self.rows.labels
        return [
            compose([(labels[int(a)], float(w)) for a, w in zip(row, weight, strict=True) if int(a) in labels])
            for row, weight in zip(atoms, weights, strict=True)
        ]

    def _dose(self, crossing: Crossing) -> list[dict[str, float]]:
        """v + λ d, d an atom of another concept than the row's and the context's, beside a random direction."""
        few = crossing.first(max(2, self.config.controls // 2))
        atoms, pushes = self.atoms, self.rows.pushes[few.rows]
        known = np.asarray(
            [a for a in self.columns if a in self.owner and a not in set(self.splits.hidden_atoms.tolist())]
        )
        added = []
        for row, context in zip(few.rows, few.contexts, strict=True):
            others = [a for a in known if self.owner[int(a)] not in (self.kinds[row], self.kinds[context])]
            added.append(int(self.rng.choice(others or known)))
        random = self.rng.standard_normal(pushes.shape).astype(np.float32)
        random /= np.linalg.norm(random, axis=1, keepdims=True)
        found = []
        for dose in DOSES:
            line = {"lambda": dose}
            for name, direction in (("named", atoms.W_dec[added]), ("null", random)):
                if dose == 0 and name == "null":
                    line["null"] = line["named"]
                    continue
                mixed = pushes + np.float32(dose) * direction
                mixed = np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True), dtype=np.float32)
                said = self._say(few, mixed) if dose else self.said["seen"][: len(few.rows)]
                stated = [
                    next((t.weight for t in s.terms if t.atom == a), 0.0) for s, a in zip(said, added, strict=True)
                ]
                line[name] = float(np.mean([w > 0 for w in stated]))
                if name == "named":
                    line["weight"] = float(np.mean(stated))
            found.append(line)
        return found

    def _examples(self) -> list[dict[str, str]]:
        rows, crossing = self.rows, self.crossings["seen"]
        found = []
        for i, (row, context) in enumerate(zip(crossing.rows[:12], crossing.contexts[:12], strict=True)):
            code = self.describer.code_terms(rows.codes[[row]], 0)[:3]
            found.append(
                {
                    "prompt": rows.prompts[row],
                    "target": rows.targets[row],
                    "context": rows.prompts[context],
                    "truth": rows.labels[int(rows.lead[row])],
                    "said": self.said["seen"][i].text,
                    "code": "; ".join(f"{t.label} ({t.weight:.2f})" for t in code),
                }
            )
        return found

    def _notes(self) -> list[str]:
        settings, splits = self.describer.reader.projector.config, self.splits
        return [
            f"Projector: {settings.arm}, {settings.soft_tokens} soft tokens, "
            + (f"after block {settings.block}" if settings.block is not None else "at the embedding")
            + (f", LoRA of rank {settings.lora_rank} on the reader" if settings.lora_rank else ", frozen reader")
            + f"; {settings.warm_steps} + {settings.steps} steps, seed {settings.seed}.",
            f"Trained on {int(splits.train.sum())} rows; calibrated on {int(splits.calibrate.sum())}; {len(self.columns)} labels.",
            f"Held out of training: {settings.hold_concepts:.0%} of concepts, {settings.hold_targets:.0%} of targets, "
            f"{settings.hold_contexts:.0%} of concepts as contexts; and every row that the dictionary held out.",
            "Ranking: s(y) = log p(y | v, context) − log p(y | no v, context), p half the closed-set probability, half uniform.",
            "Intervals: 95 %, bootstrap over concepts. p: permutation of the rows.",
        ]


def _rest(found: dict[str, Any]) -> dict[str, Any]:
    """One minus a share."""
    low_high = found["interval"]
    return found | {"value": 1 - found["value"], "interval": low_high and [1 - low_high[1], 1 - low_high[0]]}


def _plain(metric: Metric | dict[str, Any]) -> dict[str, Any]:
    found = metric.to_dict() if isinstance(metric, Metric) else dict(metric)
    return found | {"interval": list(found["interval"]) if found.get("interval") is not None else None}
