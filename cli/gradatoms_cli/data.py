"""``atoms harvest``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from gradatoms_cli.output import Json, bars, emit

if TYPE_CHECKING:
    from gradatoms.gradients import HarvestPlan


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
    dry_run: Annotated[bool, typer.Option(help="Say what there is to do, and stop.")] = False,
    json: Json = False,
) -> None:
    """Stream the activation gradients of examples into a store."""
    from gradatoms.examples import read_examples
    from gradatoms.gradients import HarvestConfig, plan_harvest
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
    loaded = load_model(model)
    if dry_run:
        plan = plan_harvest(loaded, read, out, config, resume=resume)
        emit(asdict(plan), _plan_text(plan), as_json=json)
        return
    with bars() as progress:
        planned = None if json else lambda plan: print(_plan_text(plan), file=sys.stderr)
        report = run(loaded, read, out, config, resume=resume, progress=progress, planned=planned)
    text = f"{out}: {report.rows} rows, {report.tokens} tokens in {report.seconds:.1f} s ({report.tokens_per_second:.0f} tokens/s)"
    if report.fidelity is not None:
        text += f"\nlowest cosine of a bfloat16 gradient to float32 in the first batch: {report.fidelity:.4f}"
    emit({**asdict(report), "tokens_per_second": report.tokens_per_second, "out": str(out)}, text, as_json=json)


def _plan_text(plan: HarvestPlan) -> str:
    size, free = decimal(plan.bytes), decimal(plan.free_bytes)
    text = (
        f"{plan.examples:,} examples, {plan.tokens:,} tokens; {plan.rows:,} rows at {len(plan.hooks)} hook(s), {size} of {free} free; "
        f"about {timedelta(seconds=round(plan.seconds))}"
    )
    return text if plan.bytes < plan.free_bytes else f"{text}\nthe disk will be full before it is done"
