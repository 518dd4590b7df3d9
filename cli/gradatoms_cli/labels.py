"""``atoms label`` and ``atoms score``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradatoms_cli.output import Json, bars, cut, emit, number, printable, table

if TYPE_CHECKING:
    from gradatoms.dictionary.base import Atoms
    from gradatoms.labels.judges import EmbeddingJudge, Judge

Folder = Annotated[Path, typer.Argument(help="An atoms folder, NAME.atoms.")]
Concurrency = Annotated[int | None, typer.Option(help="openai: requests at once.")]
BudgetUsd = Annotated[float | None, typer.Option(help="openai: stop before this much is spent; needs --price.")]
BudgetTokens = Annotated[int | None, typer.Option(help="openai: stop before so many tokens are used.")]
Price = Annotated[
    tuple[float, float] | None, typer.Option(help="openai: dollars for a million tokens, of input and of output.")
]
BaseUrl = Annotated[str | None, typer.Option(help="openai: another server; default $OPENAI_BASE_URL.")]


def label(
    folder: Folder,
    teacher: Annotated[
        str, typer.Option(help="rule (no model), local or local:MODEL (a chat model), openai:MODEL (a server).")
    ] = "rule",
    variant: Annotated[
        str, typer.Option(help="What the teacher sees: both, input (examples), output (lookahead); best tries all.")
    ] = "both",
    judge: Annotated[str, typer.Option(help="--variant best: who compares the labels, as for `atoms score`.")] = "auto",
    limit: Annotated[int | None, typer.Option(help="Label only the first so many atoms.")] = None,
    missing: Annotated[
        bool,
        typer.Option("--missing", help="Only what this teacher has not labelled yet: goes on after an interruption."),
    ] = False,
    set_: Annotated[
        tuple[int, str] | None, typer.Option("--set", metavar="ATOM TEXT", help="Name one atom by hand.")
    ] = None,
    history: Annotated[int | None, typer.Option(metavar="ATOM", help="Show every label that an atom has had.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="openai: say what would be asked, and ask nothing.")
    ] = False,
    kl: Annotated[
        float | None, typer.Option(help="What an injection may change, in nats; another gathers anew.")
    ] = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = None,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    price: Price = None,
    store: Annotated[Path | None, typer.Option(help="The store, where it has moved.")] = None,
    model: Annotated[str | None, typer.Option(help="The model, where it has moved.")] = None,
    json: Json = False,
) -> None:
    """Name the atoms: evidence once (lookahead and examples), then a teacher from that alone."""
    from gradatoms.dictionary.io import load_atoms
    from gradatoms.dictionary.provenance import load_model_of
    from gradatoms.labels import labeler
    from gradatoms.labels.measuring import EvidenceConfig
    from gradatoms.labels.teacher import make_teacher

    atoms = load_atoms(folder)
    if set_ is not None:
        made = labeler.set_label(atoms, *set_)
        emit(asdict(made), f"atom {made.atom}: {made.label}", as_json=json)
        return
    if history is not None:
        _history(atoms, history, json)
        return
    if variant == "best" and (limit is not None or missing):
        raise typer.BadParameter(
            "--limit and --missing do not go with --variant best, which labels and scores every atom"
        )
    remote = _remote(base_url, concurrency, budget_usd, budget_tokens, price)
    chosen = make_teacher(teacher, **remote)
    options: dict[str, Any] = {
        "load": lambda: load_model_of(atoms, model),
        "store_path": store,
        "config": None if kl is None else EvidenceConfig(kl=kl),
    }
    with bars() as progress:
        if dry_run:
            value = asdict(labeler.estimate(atoms, chosen, variant=variant, limit=limit, progress=progress, **options))
            emit(value, "\n".join(f"{k.replace('_', ' ')}: {number(v)}" for k, v in value.items()), as_json=json)
            return
        if variant == "best":
            scorer = _judge(atoms, judge, model, {})
            embedder = _embedder(scorer)
            report, scores = labeler.label_best(atoms, chosen, scorer, embedder=embedder, progress=progress, **options)
            value = asdict(report) | {
                "variants": {v: {k: m.to_dict() for k, m in s.summary().items()} for v, s in scores.items()}
            }
            text = _variants(value["variants"]) + "\n\n"
        else:
            report = labeler.label_atoms(
                atoms,
                chosen,
                variant=labeler.as_variant(variant),
                limit=limit,
                missing=missing,
                progress=progress,
                **options,
            )
            value, text = asdict(report), ""
    failures = ", ".join(f"{n} {kind}" for kind, n in report.failures.items())
    text += f"{report.labelled} labelled, {report.failed} failed{f' ({failures})' if failures else ''}; "
    emit(value, f"{text}see `atoms ls {folder}`, test with `atoms score {folder}`", as_json=json)


def score(
    folder: Folder,
    judge: Annotated[
        str,
        typer.Option(
            help="embedding (sentence model), likelihood (the model itself), local[:MODEL], openai:MODEL; auto takes the "
            "first that is there."
        ),
    ] = "auto",
    base_url: BaseUrl = None,
    concurrency: Concurrency = None,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    price: Price = None,
    model: Annotated[str | None, typer.Option(help="The model, where it has moved.")] = None,
    json: Json = False,
) -> None:
    """How good the labels are, on held-out rows: each score beside shuffled labels and random directions."""
    from gradatoms.dictionary.io import load_atoms
    from gradatoms.labels.scored import score_folder

    atoms = load_atoms(folder)
    scorer = _judge(atoms, judge, model, _remote(base_url, concurrency, budget_usd, budget_tokens, price))
    with bars() as progress:
        value = score_folder(atoms, scorer, embedder=_embedder(scorer), progress=progress)
    lines = [
        f"judge: {value['judge']}",
        "",
        _summaries("labels", value["metrics"]),
        "",
        _summaries("of real atoms", value["real"]),
        "",
        _summaries("effect foretold by", value["lookahead"]),
    ]
    emit(value, "\n".join(lines), as_json=json)


def _remote(
    base_url: str | None,
    concurrency: int | None,
    budget_usd: float | None,
    budget_tokens: int | None,
    price: tuple[float, float] | None,
) -> dict[str, Any]:
    options = {
        "base_url": base_url,
        "concurrency": concurrency,
        "budget_usd": budget_usd,
        "budget_tokens": budget_tokens,
        "prices": price,
    }
    return {name: value for name, value in options.items() if value is not None}


def _judge(atoms: Atoms, name: str, model: str | None, remote: dict[str, Any]) -> Judge:
    from gradatoms.dictionary.provenance import load_model_of
    from gradatoms.labels.judging import make_judge

    return make_judge(name, load=lambda: load_model_of(atoms, model), **remote)


def _embedder(judge: Judge) -> EmbeddingJudge | None:
    from gradatoms.labels.judges import EmbeddingJudge

    if isinstance(judge, EmbeddingJudge):
        return judge
    return EmbeddingJudge() if EmbeddingJudge.installed() else None


def _history(atoms: Atoms, number_: int, json: bool) -> None:
    from gradatoms.catalog.pages import atom_page

    rows = atom_page(atoms, number_)["history"]
    lines = [
        f"{row['at'] or '–'}  {row['teacher']} ({row['variant']}): "
        + (printable(row["label"]) if "label" in row else f"{row['kind']}: {cut(row['failure'], 60)}")
        for row in rows
    ]
    emit({"atom": number_, "history": rows}, "\n".join(lines) or "no label yet", as_json=json)


def _summaries(title: str, metrics: dict[str, Any]) -> str:
    rows = [
        [
            name, number(m["value"]),
            "–" if m["interval"] is None else f"{number(m['interval'][0])} to {number(m['interval'][1])}",
            number(m["null"]), number(m["null_random"]), m["better"], str(m["n"]),
        ]
        for name, m in metrics.items()
    ]  # fmt: skip
    return table([title, "value", "95 %", "shuffled", "random", "better", "n"], rows, wide=0)


def _variants(found: dict[str, Any]) -> str:
    names = [n for n, m in next(iter(found.values())).items() if m["value"] is not None]
    rows = [[variant, *(number(m[n]["value"]) for n in names)] for variant, m in found.items()]
    return table(["shown", *names], rows, wide=0)
