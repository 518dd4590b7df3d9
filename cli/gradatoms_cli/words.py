"""``atoms describe``, ``projector`` and ``steer``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradatoms_cli.output import Json, bars, emit, emit_line, metrics_table, number, printable, table
from gradatoms_cli.weights import step_weights

if TYPE_CHECKING:
    from gradatoms.dictionary.base import Atoms
    from gradatoms.dose import Curve
    from gradatoms.models import LoadedModel
    from gradatoms.weight_steps import Way

Folder = Annotated[Path, typer.Argument(help="An atoms folder, NAME.atoms.")]
Model = Annotated[
    str | None, typer.Option(help="The model, where it has moved; default: the one the atoms were made with.")
]


def _open(folder: Path, model: str | None) -> tuple[Atoms, LoadedModel]:
    from gradatoms.dictionary.io import load_atoms
    from gradatoms.dictionary.provenance import load_model_of

    atoms = load_atoms(folder)
    return atoms, load_model_of(atoms, model)


def describe(
    folder: Folder,
    prompt: Annotated[str | None, typer.Option(help="The prompt.")] = None,
    target: Annotated[str | None, typer.Option(help="What should follow it, with its leading space.")] = None,
    foil: Annotated[str | None, typer.Option(help="What should not.")] = None,
    context: Annotated[str | None, typer.Option(help="Describe inside this other prompt.")] = None,
    store: Annotated[Path | None, typer.Option(help="In place of a prompt: describe each row of this store.")] = None,
    mean: Annotated[bool, typer.Option("--mean", help="With --store: only its mean push, in one description.")] = False,
    minus: Annotated[Path | None, typer.Option(help="With --mean: what sets it apart from this store's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --store: only the first so many rows.")] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """A gradient in the model's own words, and as labelled atoms: one, a whole store's, or a data set's mean."""
    from gradatoms.errors import ConfigError
    from gradatoms.projector.describe import Describer, describe_mean, describe_store
    from gradatoms.projector.describe import describe as describe_one

    if store is None and (prompt is None or target is None):
        raise ConfigError("expected --prompt and --target, or --store, got neither; name what to describe")
    if store is not None and not (prompt is target is foil is None):
        raise ConfigError("expected --store or a prompt, got both; leave one out")
    if (mean or minus is not None or limit is not None) and store is None:
        raise ConfigError("expected --store with --mean, --minus and --limit, got none; name the store")
    if mean and limit is not None:
        raise ConfigError("expected --limit without --mean, which takes all rows, got both; leave one out")
    if minus is not None and not mean:
        raise ConfigError("expected --mean with --minus, which compares mean pushes, got none; add --mean")
    atoms, loaded = _open(folder, model)
    describer = Describer.open(loaded, atoms)
    if store is None:
        assert prompt is not None and target is not None
        found = describe_one(loaded, atoms, prompt, target, foil=foil, context=context, describer=describer)
    elif mean:
        found = describe_mean(describer, store, minus=minus, context=context)
    else:
        with bars() as progress:
            for row, each in describe_store(describer, store, context=context, limit=limit, progress=progress):
                line = f"{row}\t{each.confidence:.2f}\t{printable(each.text)}"
                emit_line({"row": row} | asdict(each), line, as_json=json)
        return
    lines = [
        f"the model says: {printable(found.text)}",
        "the code says:  "
        + (", ".join(f"{t.weight:.2f} {printable(t.label)} [{t.atom}]" for t in found.code_terms) or "no atom"),
        f"agreement {found.agreement:.2f}, confidence {found.confidence:.2f}, "
        + (f"length of the mean {found.norm:.3g}" if mean else f"‖g‖ {found.norm:.3g}"),
    ]
    emit(asdict(found), "\n".join(lines), as_json=json)


def projector_train(
    folder: Folder,
    steps: Annotated[int, typer.Option(help="Optimiser steps through the model.")] = 30,
    warm_steps: Annotated[int, typer.Option(help="Optimiser steps of the warm start; mlp and code want 1000.")] = 300,
    arm: Annotated[
        str, typer.Option(help="none, affine, lowrank, mlp, words, or code (the sparse code for the push).")
    ] = "words",
    soft_tokens: Annotated[int, typer.Option(help="Soft tokens a term becomes.")] = 18,
    block: Annotated[int | None, typer.Option(help="Inject after this block; default: at the embedding.")] = None,
    lora_rank: Annotated[int, typer.Option(help="Rank of a LoRA on the reading model; 0: frozen.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the splits and of the training.")] = 0,
    store: Annotated[Path | None, typer.Option(help="The store, where it has moved.")] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Train the projector on the fitted rows; an interrupted run goes on."""
    from typing import cast

    from gradatoms.projector.model import Arm, ProjectorConfig
    from gradatoms.projector.train import train_on_store

    config = ProjectorConfig(
        steps=steps,
        warm_steps=warm_steps,
        arm=cast("Arm", arm),
        soft_tokens=soft_tokens,
        block=block,
        lora_rank=lora_rank,
        batch_size=batch_size,
        seed=seed,
    )
    atoms, loaded = _open(folder, model)
    with bars() as progress:
        report = train_on_store(loaded, atoms, config, store_path=store, progress=progress)
    text = f"{report.rows} rows and {report.synthetic} synthetic; "
    text += f"loss {report.first_loss:.2f} → {report.last_loss:.2f} nats a token"
    text += f"; test with `atoms projector eval {folder}`"
    emit(asdict(report), text, as_json=json)


def projector_eval(
    folder: Folder,
    rows: Annotated[int, typer.Option(min=2, help="Held-out gradients in each split, at most.")] = 100,
    contexts: Annotated[
        int, typer.Option(min=2, help="Different prompts used as contexts in each split, at most.")
    ] = 12,
    controls: Annotated[
        int, typer.Option(min=2, help="Gradients that each control is read in place of, at most.")
    ] = 40,
    seed: Annotated[int, typer.Option(help="Which rows and contexts.")] = 0,
    store: Annotated[Path | None, typer.Option(help="The store, where it has moved.")] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Decoupled descriptions of held-out rows, beside controls and baselines; writes report.json and report.html."""
    from gradatoms.projector.decoupling import DecouplingConfig, evaluate_decoupling
    from gradatoms.projector.describe import Describer

    config = DecouplingConfig(rows=rows, contexts=contexts, controls=controls, seed=seed)
    atoms, loaded = _open(folder, model)
    with bars() as progress:
        value = evaluate_decoupling(
            Describer.open(loaded, atoms, sealed=True),
            config,
            store_path=store,
            folder=folder / "projector",
            progress=progress,
        )
    lines = [
        value["claim"],
        metrics_table(value["metrics"]),
        *(f"{name}: {m['note']}" for name, m in value["metrics"].items() if m["note"]),
        f"all of it: {folder / 'projector' / 'report.html'}",
    ]
    emit(value, "\n".join(lines), as_json=json)


def steer(
    folder: Folder,
    atom: Annotated[int | None, typer.Argument(help="Which atom.")] = None,
    prompt: Annotated[str | None, typer.Argument(help="The prompt.")] = None,
    alpha: Annotated[str, typer.Option(help="Strength in units of ‖h‖, or auto.")] = "auto",
    kl: Annotated[float, typer.Option(help="With auto: the effect on the next token, in nats.")] = 0.5,
    also: Annotated[
        list[str] | None,
        typer.Option(help="One more atom with its strength beside the first's, such as 23:-0.5; may be repeated."),
    ] = None,
    operator: Annotated[
        str, typer.Option(help="add a step, clamp the component to α, or ablate: take the share α of it away.")
    ] = "add",
    positions: Annotated[
        str, typer.Option(help="last (what new tokens are predicted from), generated (not the prompt), or all.")
    ] = "last",
    layers: Annotated[
        str | None, typer.Option(help="Blocks to edit in place of the atoms' own, such as 12,13.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Sample both with this seed; default: greedy.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 24,
    curve: Annotated[
        bool, typer.Option("--curve", help="No prompt: what the atom does at each strength, beside simpler ways; kept.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="With --curve: every atom; an interrupted run goes on.")] = False,
    store: Annotated[Path | None, typer.Option(help="With --curve: the store, where it has moved.")] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Atoms of weight gradients: a step of the weights; α in units of ‖W‖.")
    ] = False,
    way: Annotated[
        str, typer.Option(help="With --weights: documents (their gradients, preconditioned), natural, or sqrt.")
    ] = "documents",
    adapter: Annotated[
        Path | None, typer.Option(help="With --weights: write the step as a LoRA adapter; the prompt may be left out.")
    ] = None,
    rank: Annotated[int, typer.Option(help="With --adapter: most rank.")] = 64,
    model: Model = None,
    json: Json = False,
) -> None:
    """Generate without and with atoms, side by side; or measure what an atom does at each strength."""
    from typing import cast, get_args

    from gradatoms.dictionary.provenance import require_activations
    from gradatoms.errors import ConfigError
    from gradatoms.steering import Operator, Positions, generate_steered, hooks_of_layers
    from gradatoms.weight_steps import WAYS

    if not weights and (way != "documents" or adapter is not None or rank != 64):
        raise ConfigError("expected --weights with --way, --adapter and --rank, got none; add --weights")
    if curve:
        others = {
            "--weights": weights,
            "a prompt": prompt is not None, "--alpha": alpha != "auto", "--kl": kl != 0.5, "--also": bool(also),
            "--operator": operator != "add", "--positions": positions != "last", "--layers": layers is not None,
            "--max-tokens": max_tokens != 24,
        }  # fmt: skip
        given = [name for name, is_given in others.items() if is_given]
        if given:
            raise ConfigError(f"expected --curve by itself, got {', '.join(given)} with it; leave that out")
        if (atom is None) != every:
            raise ConfigError(f"expected one atom or --all with --curve, got {'both' if every else 'neither'}")
        _curves(folder, atom, seed or 0, store, model, json)
        return
    if every or store is not None:
        raise ConfigError(f"expected --curve with {'--all' if every else '--store'}, got none; add --curve")
    if atom is None or (prompt is None and adapter is None):
        raise ConfigError('expected an atom and a prompt, or --curve; such as: atoms steer X.atoms 17 "The city of"')
    for name, value, kinds in (("--operator", operator, Operator), ("--positions", positions, Positions)):
        if value not in get_args(kinds):
            raise ConfigError(f"expected {name} {', '.join(get_args(kinds))}, got {value!r}")
    try:
        strength = None if alpha == "auto" else float(alpha)
    except ValueError:
        raise ConfigError(f"expected --alpha auto or a number, got {alpha!r}") from None
    try:
        more = [(int(a), float(w)) for a, w in (text.split(":") for text in also or [])]
    except ValueError:
        raise ConfigError(f"expected --also ATOM:WEIGHT, such as 23:-0.5, got {' '.join(also or [])!r}") from None
    try:
        blocks = [int(layer) for layer in layers.split(",")] if layers else []
    except ValueError:
        raise ConfigError(f"expected --layers as block numbers, such as 12,13, got {layers!r}") from None
    if weights:
        taken = {"--operator": operator != "add", "--positions": positions != "last", "--layers": bool(blocks)}
        given = [name for name, is_given in taken.items() if is_given]
        if way not in WAYS:
            raise ConfigError(f"expected a way of {', '.join(WAYS)}, got {way!r}")
        if given:
            raise ConfigError(
                f"expected no option of the residual stream with --weights, got {', '.join(given)}; leave it out"
            )
        step_weights(
            folder, [(atom, 1.0), *more], prompt, strength=strength, kl=kl, way=cast("Way", way), adapter=adapter, rank=rank,
            seed=seed, max_tokens=max_tokens, model=model, as_json=json,
        )  # fmt: skip
        return
    assert prompt is not None
    atoms, loaded = _open(folder, model)
    require_activations(atoms)
    mix = [1.0, *(weight for _, weight in more)]
    found = generate_steered(
        loaded,
        [atoms[i] for i in (atom, *(other for other, _ in more))],
        prompt,
        alpha=None if strength is None else [strength * weight for weight in mix],
        weights=mix,
        kl=kl,
        max_tokens=max_tokens,
        operator=cast("Operator", operator),
        positions=cast("Positions", positions),
        hooks=hooks_of_layers(atoms.hook, blocks),
        seed=seed,
    )
    lines = [
        f"α {found.alpha:.3f} ‖h‖, KL {found.kl:.2f} nats at the first token",
        f"plain:   {printable(prompt + found.plain)}",
        f"steered: {printable(prompt + found.steered)}",
    ]
    emit(asdict(found), "\n".join(lines), as_json=json)


def _curves(folder: Path, atom: int | None, seed: int, store: Path | None, model: str | None, json: bool) -> None:
    """``atoms steer --curve``."""
    from gradatoms.dose import Curve, DoseConfig, dose_all, dose_curve, summary
    from gradatoms.dose.summary import RIVALS
    from gradatoms.errors import ConfigError

    config = DoseConfig(seed=seed)
    atoms, loaded = _open(folder, model)
    with bars() as progress:
        if atom is not None:
            one = dose_curve(loaded, atoms, atom, config, store_path=store, progress=progress)
            emit(one.to_dict(), _curve_text(one), as_json=json)
            return
        found = dose_all(loaded, atoms, config, store_path=store, progress=progress)
    curves = [each for each in found.values() if isinstance(each, Curve)]
    value: dict[str, Any] = {
        "atoms": len(found),
        "curves": len(curves),
        "file": str(folder / "dose.jsonl"),
        "summary": None,
    }
    lines = [f"{len(curves)} curves of {len(found)} atoms: {value['file']}"]
    try:
        value["summary"] = told = summary(curves)
    except ConfigError as error:  # too few held-out examples to say anything of atoms together
        lines.append(str(error))
    else:
        rows = [
            [
                name,
                number(told["gain"][name]["value"]),
                number(told["beats"][name]["value"]),
                str(told["beats"][name]["n"]),
            ]
            for name in RIVALS
        ]
        lines += [
            f"at {told['budget']} nats the atom gains {number(told['gain']['atom']['value'])} nats, off target "
            f"{number(told['off_target_kl']['value'])}, perplexity × {number(told['perplexity_ratio']['value'])}",
            table(["rival", "gains", "beaten by", "atoms"], rows, wide=0),
        ]
    emit(value, "\n".join(lines), as_json=json)


def _curve_text(curve: Curve) -> str:
    rows = []
    for i, dose in enumerate(curve.doses):
        rivals = [each[i].gain for each in curve.baselines.values()]
        numbers = (
            dose.budget,
            dose.alpha,
            dose.gain,
            *rivals,
            dose.target_rate,
            dose.off_target_kl,
            dose.perplexity_ratio,
        )
        rows.append([number(value) for value in numbers])
    names = [name.replace("_", " ") for name in curve.baselines]
    header = ["KL", "α", "gain", *names, "target", "off target", "perplexity ×"]
    lines = [
        f"atom {curve.atom}: {printable(curve.label or 'no label')}",
        table(header, rows, wide=2),
        f"{len(curve.rows)} held-out examples, J {number(curve.objective)}, target first {number(curve.target_rate)} unsteered",
    ]
    if curve.prompt is not None:
        asked = curve.prompt
        lines.append(
            f"the prompt {printable(repr(asked.request))} gains {number(asked.gain)} at KL {number(asked.kl)}, "
            f"target first {number(asked.target_rate)}"
        )
    safe = "none of these strengths" if curve.safe_alpha is None else f"α up to {curve.safe_alpha:.3f}"
    lines.append(f"safe: {safe}")
    return "\n".join(lines)
