"""``atoms harvest``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gradatoms_cli.output import Json, bars, emit


def harvest(
    examples: Annotated[str, typer.Argument(help="A jsonl, csv or parquet file of examples, or builtin:corrections.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The store to write, NAME.gstore.")],
    model: Annotated[str, typer.Option(help="smollm2, a hub id, a folder, or a .gguf file.")] = "smollm2",
    hook: Annotated[
        str | None, typer.Option(help="Hook names or globs, separated by commas, or all; default: the middle block.")
    ] = None,
    objective: Annotated[str, typer.Option(help="nll, or contrast (needs foils).")] = "nll",
    positions: Annotated[str, typer.Option(help="last, prediction, prompt, or all.")] = "last",
    dtype: Annotated[str, typer.Option(help="Compute in float32 or bfloat16.")] = "float32",
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens a batch.")] = 1024,
    limit: Annotated[int | None, typer.Option(help="Use so many examples, spread evenly.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an existing store.")] = False,
    json: Json = False,
) -> None:
    """Stream the activation gradients of examples into a store."""
    from gradatoms.examples import read_examples
    from gradatoms.gradients import HarvestConfig
    from gradatoms.gradients import harvest as run
    from gradatoms.models import load_model

    config = HarvestConfig(
        hooks=tuple(h.strip() for h in hook.split(",") if h.strip()) if hook else (),
        objective=objective,
        positions=positions,
        dtype=dtype,
        batch_tokens=batch_tokens,
    )
    read = read_examples(examples, limit=limit)
    with bars() as progress:
        report = run(load_model(model), read, out, config, resume=resume, progress=progress)
    text = f"{out}: {report.rows} rows, {report.tokens} tokens in {report.seconds:.1f} s ({report.tokens_per_second:.0f} tokens/s)"
    if report.fidelity is not None:
        text += f"\nlowest cosine of a bfloat16 gradient to float32 in the first batch: {report.fidelity:.4f}"
    emit({**asdict(report), "tokens_per_second": report.tokens_per_second, "out": str(out)}, text, as_json=json)
