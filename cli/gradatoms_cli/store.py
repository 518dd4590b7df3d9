"""``atoms store``: look at a gradient store, check it, and bring it elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from gradatoms_cli.output import Json, bars, cut, emit, number, printable, table

if TYPE_CHECKING:
    from gradatoms_store import StoreInfo

StorePath = Annotated[Path, typer.Argument(help="A store, NAME.gstore.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="What to make; must not exist.")]

SHOWN_CONCEPTS = 10


def info(path: StorePath, json: Json = False) -> None:
    """What a store holds, from its sidecars alone."""
    from gradatoms_store import store_info

    found = store_info(path)
    emit(_info_value(found), _info_text(path, found), as_json=json)


def verify(
    path: StorePath,
    repair: Annotated[
        bool, typer.Option(help="Move bad shards to aside/, so that a resume harvests them again.")
    ] = False,
    json: Json = False,
) -> None:
    """Check every byte of a store; exit status 1 when something is wrong."""
    from gradatoms_store import repair_store, verify_store

    with bars() as progress:
        if repair:
            repaired = repair_store(path, progress=progress)
            value: dict[str, Any] = {"ok": not repaired.problems, **asdict(repaired)}
            problems, last = repaired.problems, _repair_text(repaired.set_aside, repaired.units)
        else:
            report = verify_store(path, progress=progress)
            value, problems = {"ok": report.ok, **asdict(report)}, report.problems
            last = f"{path}: {len(problems)} problem(s) in {report.shards} shards; good: {report.rows} rows"
    emit(value, "\n".join([*(printable(problem.message) for problem in problems), last]), as_json=json)
    if problems and not repair:
        raise typer.Exit(1)


def view(path: StorePath, json: Json = False) -> None:
    """Write view.h5: one HDF5 file over all shards, for any HDF5 tool."""
    from gradatoms_store import write_view

    with bars() as progress:
        file = write_view(path, progress=progress)
    emit({"out": str(file)}, f"{file}: written; make it again after the store has changed", as_json=json)


def merge(
    paths: Annotated[list[Path], typer.Argument(help="Stores of one kind: the same model, hooks, objective, ....")],
    out: Out,
    json: Json = False,
) -> None:
    """Make one store of several, sharing their files through hard links where possible."""
    from gradatoms_store import merge_stores, store_info

    with bars() as progress:
        merge_stores(paths, out, progress=progress)
    found = store_info(out)
    text = f"{out}: {found.rows} rows in {found.shards} shards"
    emit({"out": str(out), "rows": found.rows, "shards": found.shards}, text, as_json=json)


def export(
    path: StorePath,
    out: Out,
    to: Annotated[str, typer.Option(help="hdf5 (one file), safetensors, or dataset (Hugging Face).")] = "hdf5",
    json: Json = False,
) -> None:
    """Write a store for other tools: one HDF5 file, safetensors files, or a Hugging Face dataset."""
    from gradatoms_store import StoreValueError, open_store
    from gradatoms_store.exchange import EXPORTS

    if to not in EXPORTS:
        raise StoreValueError(f"--to expected one of {', '.join(EXPORTS)}, got {to!r}; choose one of them")
    store = open_store(path)
    with bars() as progress:
        EXPORTS[to](store, out, progress=progress)
    emit({"out": str(out), "rows": store.n_rows, "to": to}, f"{out}: {store.n_rows} rows", as_json=json)


def import_(
    source: Annotated[Path, typer.Argument(help="An .npy or .npz file, or the folder of a bergson index.")],
    out: Out,
    model: Annotated[str | None, typer.Option(help="Name of the model (numpy).")] = None,
    objective: Annotated[str | None, typer.Option(help="What the gradients are of, such as nll.")] = None,
    positions: Annotated[str, typer.Option(help="Which positions became rows (numpy).")] = "last",
    space: Annotated[str, typer.Option(help="activation or weights (numpy).")] = "activation",
    examples: Annotated[Path | None, typer.Option(help="A jsonl file with the texts, by id.")] = None,
    dtype: Annotated[str, typer.Option(help="Stored dtype: float16, bfloat16 or float32.")] = "float16",
    resume: Annotated[bool, typer.Option(help="Go on with an import that was cut off.")] = False,
    json: Json = False,
) -> None:
    """Make a store of gradients in numpy arrays (raw, one row an example) or of a bergson index."""
    from gradatoms_store import StoreValueError, store_info
    from gradatoms_store.exchange import import_bergson, import_numpy

    common: dict[str, Any] = {"examples": examples, "dtype": dtype, "resume": resume}
    with bars() as progress:
        if source.is_dir():
            named = None if model is None else {"name": model}
            import_bergson(source, out, objective=objective, model=named, progress=progress, **common)
        elif model is None or objective is None:
            missing = "--model" if model is None else "--objective"
            raise StoreValueError(f"{source}: an array does not say whose gradients it holds; give {missing}")
        else:
            fields: dict[str, Any] = {"objective": objective, "positions": positions, "space": space}
            import_numpy(source, out, model={"name": model}, progress=progress, **fields, **common)
    found = store_info(out)
    text = f"{out}: {found.rows} rows, {found.examples} examples, hooks {', '.join(found.hooks)}"
    emit({"out": str(out), "rows": found.rows, "examples": found.examples}, text, as_json=json)


def _info_value(found: StoreInfo) -> dict[str, Any]:
    header = found.header
    return {
        "rows": found.rows,
        "examples": found.examples,
        "bytes": found.bytes,
        "shards": found.shards,
        "complete": found.complete,
        "units": {"done": found.units, "planned": header.n_units},
        "model": dict(header.model),
        "objective": header.objective,
        "positions": header.positions,
        "space": header.space,
        "dtype": header.dtype,
        "d": found.d,
        "hooks": list(found.hooks),
        "widths": {hook.name: hook.d for hook in header.hooks},
        "norms": {hook: asdict(summary) for hook, summary in found.norms.items()},
        "nan": {"gradients": 0, "losses": found.nan_losses},
        "concepts": found.concepts,
        "fingerprint": header.fingerprint,
        "schema_version": header.schema_version,
    }


def _info_text(path: Path, found: StoreInfo) -> str:
    header = found.header
    model = ", ".join(f"{key} {value}" for key, value in header.model.items())
    nan = "unknown (format version 1)" if found.nan_losses is None else str(found.nan_losses)
    lines = [
        f"{path}: {found.rows:,} rows of {found.examples:,} examples, {decimal(found.bytes)} in {found.shards} shards",
        f"model      {cut(model, 68)}",
        f"gradients  of {header.objective} at {header.positions}, space {header.space}, {header.dtype}",
        f"units      {found.units} of {header.n_units}{'' if found.complete else ': not complete, harvest with --resume'}",
        f"NaN        gradients 0 (never stored), losses {nan}",
        "",
        table(["hook", "d", "min", "5 %", "median", "95 %", "max", "zero"], _norm_rows(found), wide=0),
        "norms |g| in nats per unit of the hook" + (", quantiles over shards interpolated" if found.shards > 1 else ""),
    ]
    shown = list(found.concepts.items())[:SHOWN_CONCEPTS]
    if shown:
        lines += ["", table(["concept", "rows"], [[printable(name), f"{n:,}"] for name, n in shown], wide=0)]
        rest = len(found.concepts) - len(shown)
        lines += [f"and {rest} more concepts"] if rest else []
    return "\n".join(lines)


def _norm_rows(found: StoreInfo) -> list[list[str]]:
    rows = []
    for hook in found.header.hooks:
        norms = found.norms[hook.name]
        quantiles = [norms.quantiles.get(q) for q in ("0.05", "0.5", "0.95")]
        values = [number(value) for value in (norms.min, *quantiles, norms.max)]
        rows.append([hook.name, str(hook.d), *values, str(norms.zeros)])
    return rows


def _repair_text(set_aside: tuple[str, ...], units: tuple[int, ...]) -> str:
    if not set_aside:
        return "nothing to set aside"
    left = f"{len(units)} unit(s) are not in the store: harvest again with --resume"
    return f"set aside: {', '.join(set_aside)}\n{left}"
