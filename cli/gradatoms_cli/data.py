"""``atoms harvest``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from gradatoms_cli.output import Json, bars, emit

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradatoms.gradients import HarvestPlan, HarvestReport


def harvest(
    examples: Annotated[
        str,
        typer.Argument(
            help="A jsonl, csv or parquet file of examples or chats, hf:NAME[:split], builtin:corrections, or builtin:instructions."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The store to write, NAME.gstore.")],
    model: Annotated[str, typer.Option(help="smollm2, a hub id, a folder, or a .gguf file.")] = "smollm2",
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA adapter on top of the model: a folder or a hub id.")
    ] = None,
    hook: Annotated[
        str | None, typer.Option(help="Hook names or globs, separated by commas, or all; default: the middle block.")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="nll, contrast (needs foils), logit, or kl (to distributions, or to --reference).")
    ] = "nll",
    reference: Annotated[str | None, typer.Option(help="The second model of objective kl.")] = None,
    positions: Annotated[str, typer.Option(help="last, prediction, prompt, all, or span.")] = "last",
    activations: Annotated[bool, typer.Option(help="Store the activation h beside each gradient.")] = False,
    text: Annotated[
        bool, typer.Option(help="Plain text: a text file, or the field text; each next token is a loss.")
    ] = False,
    window: Annotated[int, typer.Option(help="Tokens a piece of plain text.")] = 128,
    dtype: Annotated[
        str, typer.Option(help="Compute in float32, bfloat16, or auto: bfloat16 if it is safe.")
    ] = "float32",
    batch_tokens: Annotated[
        int | None, typer.Option(help="Padded tokens a batch; default: the fastest; of weights 512, on a GPU 16384.")
    ] = None,
    unit_examples: Annotated[
        int, typer.Option(help="Examples a unit of work, which one process takes at a time.")
    ] = 512,
    padding: Annotated[str, typer.Option(help="right, masked, left, or auto.")] = "auto",
    share: Annotated[bool, typer.Option(help="Compute what prompts begin with alike once, where that pays.")] = True,
    unusable: Annotated[str, typer.Option(help="Examples that cannot be used: skip and list them, or stop.")] = "skip",
    nan: Annotated[str, typer.Option(help="Gradients that are not finite: stop, or drop and list them.")] = "stop",
    limit: Annotated[int | None, typer.Option(help="Use so many examples, spread evenly.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an existing store.")] = False,
    shard: Annotated[
        str | None, typer.Option(help="i/n: only the i-th of n parts of one store, for job arrays.")
    ] = None,
    fsdp: Annotated[bool, typer.Option(help="Under torchrun: divide the model among the ranks.")] = False,
    device_map: Annotated[
        str | None, typer.Option(help="auto: spread the model over all devices of this process.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what there is to do, and stop.")] = False,
    space: Annotated[
        str, typer.Option(help="activation, or weights: one row a document, the gradient of modules' weights.")
    ] = "activation",
    modules: Annotated[
        str | None,
        typer.Option(help="Weights: modules by glob or end of name, or all; default: LoRA's, else q_proj and v_proj."),
    ] = None,
    top_k_eigen: Annotated[int, typer.Option(help="Weights: components kept a module.")] = 50,
    variance: Annotated[
        float | None, typer.Option(help="Weights: of these, as many as have this share of the eigenvalues.")
    ] = None,
    projection: Annotated[str, typer.Option(help="Weights: eigen, or random.")] = "eigen",
    eigenvalues: Annotated[str, typer.Option(help="Weights: kfac, or ekfac (fitted in a second pass).")] = "kfac",
    fisher: Annotated[
        str, typer.Option(help="Weights: targets sampled from the model, or the empirical ones.")
    ] = "sampled",
    curvature_examples: Annotated[int, typer.Option(help="Weights: documents that curvature is measured on.")] = 1000,
    curvature: Annotated[
        Path | None,
        typer.Option(help="Weights: another store's curvature.safetensors, for rows in the same components."),
    ] = None,
    sketch: Annotated[
        int, typer.Option(help="Weights: directions a side of the whole gradient's sketch; 0: none.")
    ] = 16,
    json: Json = False,
) -> None:
    """Stream the gradients of examples into a store; several processes, with torchrun or --shard, share one."""
    from gradatoms.errors import ConfigError
    from gradatoms.examples import read_examples
    from gradatoms.gradients import HarvestConfig, Ranks, divide, parse_shard, plan_harvest
    from gradatoms.gradients import harvest as harvest_activations
    from gradatoms.gradients.curvature import CurvatureConfig
    from gradatoms.gradients.projection import ProjectionConfig
    from gradatoms.gradients.weight_harvest import WeightConfig, harvest_weights
    from gradatoms.models import load_model, load_tokenizer

    config = HarvestConfig(
        hooks=tuple(h.strip() for h in hook.split(",") if h.strip()) if hook else (),
        objective=objective,
        positions=positions,
        activations=activations,
        dtype=dtype,
        batch_tokens=batch_tokens,
        unit_examples=unit_examples,
        padding=padding,
        share_prefixes=share,
        unusable=unusable,
        nan=nan,
    )
    if space not in ("activation", "weights"):
        raise ConfigError(f"expected --space activation or weights, got {space!r}")
    part = None if shard is None else parse_shard(shard)
    ranks = Ranks.here()
    read = read_examples(
        examples, limit=limit, text=text, window=window, tokenizer=cache(lambda: load_tokenizer(model))
    )
    with ranks.group():
        device = "cpu" if fsdp else ranks.device  # to be divided, a model need not fit on one device
        loaded = load_model(model, adapter=adapter, device=device, device_map=device_map)
        second = None if reference is None else load_model(reference, device=device, device_map=device_map)
        if fsdp:
            ranks = ranks.sharing_a_model()
            divide(loaded, ranks)
            if second is not None:
                divide(second, ranks)
        run: Callable[..., HarvestReport] = harvest_activations
        if dry_run:
            if space == "weights":
                raise ConfigError(
                    "expected no --dry-run with --space weights, whose curvature comes first; leave it out"
                )
            plan = plan_harvest(loaded, read, out, config, resume=resume, reference=second, shard=part)
            emit(asdict(plan), _plan_text(plan), as_json=json)
            return
        if space == "weights":
            run = partial(
                harvest_weights, curvature=curvature,
                weights=WeightConfig(
                    modules=tuple(m.strip() for m in (modules or "").split(",") if m.strip()), sketch=sketch,
                    projection=ProjectionConfig(kind=projection, top_k=top_k_eigen, variance=variance),
                    curvature=CurvatureConfig(dtype=dtype, eigenvalues=eigenvalues, fisher=fisher, examples=curvature_examples),
                ),
            )  # fmt: skip
        quiet = json or ranks.rank > 0
        with bars(hidden=ranks.rank > 0) as progress:
            planned = None if quiet else lambda plan: print(_plan_text(plan), file=sys.stderr)
            report = run(
                loaded, read, out, config, resume=resume, reference=second, shard=part, ranks=ranks, progress=progress,
                planned=planned,
            )  # fmt: skip
    who = f" (rank {ranks.rank} of {ranks.world})" if ranks.world > 1 else ""
    text_out = f"{out}: {report.rows} rows, {report.tokens} tokens in {report.seconds:.1f} s ({report.tokens_per_second:.0f} tokens/s){who}"
    if report.skipped:
        text_out += f"\nleft out: {_reasons(report.skipped)}; listed in {out / 'skipped.jsonl'}"
    emit({**asdict(report), "tokens_per_second": report.tokens_per_second, "out": str(out)}, text_out, as_json=json)


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} ({reason})" for reason, number in counts.items())


def _plan_text(plan: HarvestPlan) -> str:
    size, free = decimal(plan.bytes), decimal(plan.free_bytes)
    text = (
        f"{plan.examples:,} examples, {plan.tokens:,} tokens; {plan.rows:,} rows at {len(plan.hooks)} hook(s), {size} of {free} free; "
        f"about {timedelta(seconds=round(plan.seconds))}"
    )
    if plan.unusable:
        text += f"\ncannot be used: {_reasons(plan.unusable)}"
    if plan.choices.fidelity is not None:
        cosine = plan.choices.fidelity
        text += (
            f"\nin {plan.choices.dtype}; cosine of bfloat16 gradients to float32 on one batch: {cosine.percentile_5:.4f} at the 5th "
            f"percentile, {cosine.lowest:.4f} at the lowest"
        )
    return text if plan.bytes < plan.free_bytes else f"{text}\nthe disk will be full before it is done"
