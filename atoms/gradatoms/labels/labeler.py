"""Label the atoms of a folder: evidence once, then any teacher from that alone; the best of several labels; a person's own."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.fit import encode_store
from gradatoms.dictionary.io import load_codes
from gradatoms.dictionary.provenance import folder_of, require_same_model, store_of
from gradatoms.errors import AtomsFormatError, ConfigError
from gradatoms.labels.budget import Estimate
from gradatoms.labels.evidence import Evidence, Trials
from gradatoms.labels.gather import gather
from gradatoms.labels.judges import EmbeddingJudge, Judge
from gradatoms.labels.label import (
    FILE,
    HUMAN,
    MAX_WORDS,
    NULL,
    VARIANTS,
    Label,
    LabelFailure,
    Result,
    Variant,
    append_results,
    distinct,
    label_texts,
    load_history,
    load_labels,
)
from gradatoms.labels.measuring import EvidenceConfig
from gradatoms.labels.scoring import AMONG, LabelScore, Scores, score_labels
from gradatoms.labels.storage import Gathered, load_evidence
from gradatoms.labels.teacher import Teacher
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent

Loader = Callable[[], LoadedModel]
"""Gives the model when it is needed."""
PREFERENCE = 0.1
"""How much better than the label from all evidence another must score to be chosen: the trials of one atom are few."""


@dataclass(frozen=True)
class LabelReport:
    """What one call labelled."""

    labelled: int
    failed: int
    failures: dict[str, int] = field(default_factory=dict)
    """How many of each kind."""
    chosen: dict[str, int] = field(default_factory=dict)
    """With several variants: how many atoms each was best for."""


def label_atoms(
    atoms: Atoms,
    teacher: Teacher,
    *,
    load: Loader,
    store_path: str | Path | None = None,
    config: EvidenceConfig | None = None,
    variant: Variant = "both",
    limit: int | None = None,
    missing: bool = False,
    progress: Progress = silent,
) -> LabelReport:
    """Append a label (or a typed failure) for every atom to ``labels.jsonl``, each as soon as it is there.

    The lookahead runs once; its evidence is kept in ``evidence.h5``, and another teacher works from that alone. Random
    directions are labelled in the same way, as the null of the scores.

    Args:
        load: gives the model; called only if there is no evidence yet.
        config: how evidence is gathered, where there is none; asked with other settings, it is gathered again.
        limit: label only the first so many atoms, and no random direction.
        missing: leave out what this teacher has labelled from this variant before, such as in a call that was stopped.
    """
    gathered = ensure_evidence(atoms, load, store_path=store_path, config=config, progress=progress)
    folder = folder_of(atoms)
    evidence = _without(gathered.evidence[:limit], folder, FILE, teacher, variant, missing)
    by_hand = {a: label.label for a, label in load_labels(folder).items() if label.teacher == HUMAN}
    used = by_hand | ({a: label.label for a, label in load_labels(folder).items()} if missing else {})
    results = []
    teacher.survey(gathered.evidence)
    for result in _finished(teacher.label(evidence, variant=variant), used.values()):
        append_results(folder, [result])
        results.append(result)
        progress("label", len(results), len(evidence))
    if limit is None:
        null = _without(gathered.null_evidence, folder, NULL, teacher, variant, missing)
        for result in _finished(teacher.label(null, variant=variant)):
            append_results(folder, [result], NULL)
    return _report(results)


def _without(
    evidence: Sequence[Evidence], folder: Path, name: str, teacher: Teacher, variant: Variant, missing: bool
) -> Sequence[Evidence]:
    """Evidence of atoms that this teacher has no label for, where only these are asked for."""
    if not missing:
        return evidence
    done = {
        row.atom
        for row in load_history(folder, name)
        if isinstance(row, Label) and (row.teacher, row.variant) == (teacher.name, variant)
    }
    return [e for e in evidence if e.atom not in done]


def label_best(
    atoms: Atoms,
    teacher: Teacher,
    judge: Judge,
    *,
    load: Loader,
    store_path: str | Path | None = None,
    config: EvidenceConfig | None = None,
    embedder: EmbeddingJudge | None = None,
    progress: Progress = silent,
) -> tuple[LabelReport, dict[str, Scores]]:
    """Label each atom from its examples, from its lookahead, and from both; keep the one that scores best.

    The choice is made on every second held-out trial; the scores that are returned, of each variant and of what was
    ``chosen``, are from the others (left out where fewer than two atoms have a label). All labels are in the history, the chosen one last.
    """
    gathered = ensure_evidence(atoms, load, store_path=store_path, config=config, progress=progress)
    teacher.survey(gathered.evidence)
    own, own_failed, picked = _choose(gathered.evidence, gathered.trials, teacher, judge, progress)
    null, _, null_picked = _choose(gathered.null_evidence, gathered.null_trials, teacher, judge, progress)
    own_best = {a: own[v][a] for a, v in picked.items()}
    null_best = {a: null[v][a] for a, v in null_picked.items()}
    for results, failed, chosen, name in ((own, own_failed, picked, "labels.jsonl"), (null, [], null_picked, NULL)):
        rows = [results[v][a] for v in VARIANTS for a in results[v] if chosen.get(a) != v]
        append_results(folder_of(atoms), [*failed, *rows, *(results[v][a] for a, v in chosen.items())], name)
    scores = {}
    for name, texts, null_texts in (
        *((v, label_texts(own[v]), label_texts(null[v])) for v in VARIANTS),
        ("chosen", label_texts(own_best), label_texts(null_best)),
    ):
        if len(texts) < 2:
            continue  # nothing to be told apart from
        scores[name] = score_labels(
            texts, gathered.trials, judge, random_labels=null_texts, random_trials=gathered.null_trials, half=1,
            concepts=gathered.about.get("concepts", ()), embedder=embedder, progress=progress,
        )  # fmt: skip
    labelled = list(own_best.values())
    failures = [f for f in own_failed if f.atom not in picked]
    report = _report([*labelled, *failures])
    return replace(report, chosen=dict(Counter(picked.values()))), scores


def _choose(
    evidence: Sequence[Evidence], trials: Sequence[Trials], teacher: Teacher, judge: Judge, progress: Progress
) -> tuple[dict[Variant, dict[int, Label]], list[LabelFailure], dict[int, Variant]]:
    """Labels of each variant, failures, and the variant whose label scores best for each atom on one half of its trials."""
    found: dict[Variant, dict[int, Label]] = {}
    failed: list[LabelFailure] = []
    marks: dict[int, list[tuple[float, int]]] = {}
    for order, variant in enumerate(VARIANTS):
        found[variant] = {}
        for result in _finished(teacher.label(evidence, variant=variant)):
            if isinstance(result, Label):
                found[variant][result.atom] = result
            else:
                failed.append(result)
            progress(f"label from {variant}", len(found[variant]), len(evidence))
        texts = {a: label.label for a, label in found[variant].items()}
        scores = score_labels(texts, trials, judge, half=0).labels if len(texts) > 1 else []
        for s in scores:
            marks.setdefault(s.atom, []).append((_mark(s) + PREFERENCE * (variant == "both"), -order))
        for atom in set(texts) - set(marks):
            marks[atom] = [(0.0, -order)]
    return found, failed, {atom: VARIANTS[-max(m)[1]] for atom, m in sorted(marks.items())}


def _mark(score: LabelScore) -> float:
    """Mean of what there is: the detections, fuzzing, and 1 for the first to 0 for the last rank."""
    rank = None if score.output_rank is None else 1 - (score.output_rank - 1) / (AMONG - 1)
    parts = [score.detection, score.detection_weak, score.detection_easy, score.fuzzing, rank]
    known = [p for p in parts if p is not None]
    return sum(known) / len(known) if known else 0.0


def estimate(
    atoms: Atoms,
    teacher: Teacher,
    *,
    load: Loader,
    store_path: str | Path | None = None,
    config: EvidenceConfig | None = None,
    variant: str = "both",
    limit: int | None = None,
    progress: Progress = silent,
) -> Estimate:
    """What labelling would ask a server for, random directions included; nothing is sent.

    Raises:
        ConfigError: a teacher that asks no server.
    """
    from gradatoms.labels.chat_teacher import ChatTeacher
    from gradatoms.labels.remote import RemoteChat

    if not isinstance(teacher, ChatTeacher) or not isinstance(teacher.chat, RemoteChat):
        raise ConfigError(
            f"expected a teacher openai:MODEL for a dry run, {teacher.name} costs nothing; leave --dry-run out"
        )
    gathered = ensure_evidence(atoms, load, store_path=store_path, config=config, progress=progress)
    evidence = gathered.evidence[:limit] + (gathered.null_evidence if limit is None else [])
    variants = VARIANTS if variant == "best" else (as_variant(variant),)
    return teacher.chat.estimate([q for v in variants for q in teacher.questions(evidence, v)])


def as_variant(name: str) -> Variant:
    """The variant of this name.

    Raises:
        ConfigError: there is none.
    """
    for variant in VARIANTS:
        if variant == name:
            return variant
    raise ConfigError(f"expected a variant of {', '.join(VARIANTS)}, best, got {name!r}")


def set_label(atoms: Atoms, atom: int, text: str, *, sentence: str = "") -> Label:
    """Give an atom a label by hand; no machine's label replaces it, a newer one by hand does.

    Raises:
        ConfigError: no such atom, or the text is empty, of several lines, or of more than eight words.
    """
    number = atoms[atom].index
    words = text.split()
    if not words or len(words) > MAX_WORDS or not text.isprintable():
        raise ConfigError(f"expected a label of 1 to {MAX_WORDS} words on one line, got {text!r}")
    label = Label(atom=number, label=" ".join(words), sentence=sentence, teacher=HUMAN, at=_now())
    taken = {a: found.label for a, found in load_labels(folder_of(atoms)).items() if a != number}
    twin = next((a for a, other in taken.items() if other == label.label), None)
    if twin is not None:
        raise ConfigError(f"expected a label that no other atom has, atom {twin} is called {label.label!r}; add a word")
    append_results(folder_of(atoms), [label])
    return label


def ensure_evidence(
    atoms: Atoms,
    load: Loader,
    *,
    store_path: str | Path | None = None,
    config: EvidenceConfig | None = None,
    progress: Progress = silent,
) -> Gathered:
    """The evidence on disk, gathered first if there is none, or none of these settings."""
    path = folder_of(atoms) / "evidence.h5"
    if path.exists():
        try:
            kept = load_evidence(path)
        except AtomsFormatError:
            if config is None:
                raise
        else:
            asked = {} if config is None else vars(config)
            if all(kept.about.get(k) == v for k, v in asked.items()):
                return kept
    store, loaded = store_of(atoms, store_path), load()
    require_same_model(atoms, loaded)
    codes = folder_of(atoms) / "codes.h5"
    own = store_path is None and codes.exists()
    return gather(
        loaded, atoms, load_codes(codes) if own else encode_store(atoms, store), store, path,
        config or EvidenceConfig(), progress=progress,
    )  # fmt: skip


def _finished(results: Iterable[Result], taken: Iterable[str] = ()) -> Iterator[Result]:
    """Results with the time, and with labels that no other of this call, and none of ``taken``, has."""
    used = set(taken)
    for result in results:
        if isinstance(result, Label):
            result = replace(result, label=distinct(result.label, used))
            used.add(result.label)
        yield replace(result, at=_now())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _report(results: Sequence[Result]) -> LabelReport:
    failures = Counter[str](r.kind for r in results if isinstance(r, LabelFailure))
    failed = sum(failures.values())
    return LabelReport(len(results) - failed, failed, dict(failures))
