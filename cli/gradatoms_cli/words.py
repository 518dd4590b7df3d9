"""``atoms describe``, ``projector`` and ``steer``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradatoms_cli.output import Json, bars, emit, metrics_table, printable

if TYPE_CHECKING:
    from gradatoms.dictionary.base import Atoms
    from gradatoms.models import LoadedModel

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
    prompt: Annotated[str, typer.Option(help="The prompt.")],
    target: Annotated[str, typer.Option(help="What should follow it, with its leading space.")],
    foil: Annotated[str | None, typer.Option(help="What should not.")] = None,
    context: Annotated[str | None, typer.Option(help="Describe inside this other prompt.")] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """A gradient in the model's own words, and as labelled atoms."""
    from gradatoms.projector.describe import describe as run

    atoms, loaded = _open(folder, model)
    found = run(loaded, atoms, prompt, target, foil=foil, context=context)
    lines = [
        f"the model says: {printable(found.text)}",
        "the code says:  "
        + (", ".join(f"{t.weight:.2f} {printable(t.label)} [{t.atom}]" for t in found.code_terms) or "no atom"),
        f"‖g‖ {found.norm:.3g}, confidence {found.confidence:.2f} (not calibrated)",
    ]
    emit(asdict(found), "\n".join(lines), as_json=json)


def projector_train(
    folder: Folder,
    steps: Annotated[int, typer.Option(help="Optimiser steps through the model.")] = 60,
    soft_tokens: Annotated[int, typer.Option(help="Soft tokens a push becomes.")] = 14,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    model: Model = None,
    json: Json = False,
) -> None:
    """Train the projector on the fitted rows; an interrupted run goes on."""
    from gradatoms.projector.model import ProjectorConfig
    from gradatoms.projector.train import train_on_store

    config = ProjectorConfig(steps=steps, soft_tokens=soft_tokens, seed=seed)
    atoms, loaded = _open(folder, model)
    with bars() as progress:
        report = train_on_store(loaded, atoms, config, progress=progress)
    text = f"{report.rows} rows; loss {report.first_loss:.2f} → {report.last_loss:.2f} nats a token"
    text += f"; test with `atoms projector eval {folder}`"
    emit(asdict(report), text, as_json=json)


def projector_eval(
    folder: Folder,
    rows: Annotated[int, typer.Option(help="Held-out rows.")] = 150,
    seed: Annotated[int, typer.Option(help="Which rows and contexts.")] = 0,
    model: Model = None,
    json: Json = False,
) -> None:
    """Decoupled descriptions on held-out rows, beside shuffled and no-gradient controls."""
    import time

    from gradatoms.metric import peak_memory_bytes
    from gradatoms.projector.decoupling import evaluate_decoupling
    from gradatoms.projector.describe import Describer

    started = time.perf_counter()
    atoms, loaded = _open(folder, model)
    with bars() as progress:
        report = evaluate_decoupling(Describer.open(loaded, atoms), rows=rows, seed=seed, progress=progress)
    value = report.to_dict() | {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory_bytes()}
    lines = [metrics_table(value["metrics"]), *(f"{k}: {m['note']}" for k, m in value["metrics"].items())]
    emit(value, "\n".join(lines), as_json=json)


def steer(
    folder: Folder,
    atom: Annotated[int, typer.Argument(help="Which atom.")],
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    alpha: Annotated[str, typer.Option(help="Strength in units of ‖h‖, or auto.")] = "auto",
    kl: Annotated[float, typer.Option(help="With auto: the effect on the next token, in nats.")] = 0.5,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 24,
    model: Model = None,
    json: Json = False,
) -> None:
    """Generate without and with an atom, side by side."""
    from gradatoms.errors import ConfigError
    from gradatoms.steering import generate_steered

    try:
        strength = None if alpha == "auto" else float(alpha)
    except ValueError:
        raise ConfigError(f"expected --alpha auto or a number, got {alpha!r}") from None
    atoms, loaded = _open(folder, model)
    found = generate_steered(loaded, atoms[atom], prompt, alpha=strength, kl=kl, max_tokens=max_tokens)
    lines = [
        f"α {found.alpha:.3f} ‖h‖, KL {found.kl:.2f} nats at the first token",
        f"plain:   {printable(prompt + found.plain)}",
        f"steered: {printable(prompt + found.steered)}",
    ]
    emit(asdict(found), "\n".join(lines), as_json=json)
