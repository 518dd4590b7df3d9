"""``atoms demo``: the whole pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradatoms_cli.output import Json, bars, emit


def demo(
    out: Annotated[Path, typer.Option(help="Where to work; a second call goes on from what is there.")] = Path(
        "runs/demo"
    ),
    examples: Annotated[str, typer.Option(help="Another corpus: a jsonl file.")] = "builtin:corrections",
    model: Annotated[str, typer.Option(help="Another model.")] = "smollm2",
    limit: Annotated[int | None, typer.Option(help="Use so many examples, spread evenly.")] = None,
    json: Json = False,
) -> None:
    """Run the whole pipeline on packaged weights and the built-in corpus; no network."""
    from gradatoms.demo import DemoConfig, run_demo

    with bars() as progress:
        report = run_demo(DemoConfig(out=out, examples=examples, model=model, limit=limit), progress=progress)
    emit(report.to_dict(), report.text, as_json=json)
