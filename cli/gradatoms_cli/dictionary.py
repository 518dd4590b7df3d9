"""``atoms fit``, ``eval``, ``ls``, ``show`` and ``search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gradatoms_cli.output import Json, bars, cut, emit, metrics_table, number, printable, table

Folder = Annotated[Path, typer.Argument(help="An atoms folder, NAME.atoms.")]


def fit(
    store: Annotated[Path, typer.Argument(help="A store, NAME.gstore.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write, NAME.atoms.")],
    hook: Annotated[str | None, typer.Option(help="Which hook, where the store has several.")] = None,
    method: Annotated[str, typer.Option(help="online (classical dictionary learning), or topk (SAELens).")] = "online",
    n_atoms: Annotated[int | None, typer.Option(help="Atoms in the dictionary.")] = None,
    k: Annotated[int | None, typer.Option(help="topk: atoms kept a row.")] = None,
    alpha: Annotated[float | None, typer.Option(help="online: lasso penalty.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.")] = None,
    holdout: Annotated[float, typer.Option(help="Share of examples kept for scoring.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Seed of the fit.")] = 0,
    json: Json = False,
) -> None:
    """Learn a dictionary of gradient atoms from a store."""
    from gradatoms.dictionary.fit import fit_store, make_config

    config = make_config(method, {"n_atoms": n_atoms, "k": k, "alpha": alpha, "epochs": epochs, "seed": seed})
    with bars() as progress:
        atoms, report = fit_store(store, out, config, hook=hook, holdout=holdout, progress=progress)
    value = report.to_dict() | {"out": str(out), "n_atoms": len(atoms)}
    emit(value, f"{out}: {len(atoms)} atoms at {atoms.hook}\n\n{metrics_table(value['metrics'])}", as_json=json)


def evaluate(
    folder: Folder,
    store: Annotated[Path | None, typer.Option(help="Another store than the one fitted on.")] = None,
    model: Annotated[str | None, typer.Option(help="The model, where it has moved.")] = None,
    rows: Annotated[int, typer.Option(help="Rows at most for step recovered.")] = 200,
    json: Json = False,
) -> None:
    """Metrics on held-out rows, each beside its null; with the model, so step recovered too."""
    from gradatoms.dictionary.fit import evaluate_folder
    from gradatoms.dictionary.io import load_atoms

    atoms = load_atoms(folder)
    with bars() as progress:
        value = evaluate_folder(atoms, store_path=store, model=model, step_rows=rows, progress=progress)
    lines = [metrics_table(value["metrics"])] + [f"{k}: {m['note']}" for k, m in value["metrics"].items() if m["note"]]
    emit(value, "\n".join(lines), as_json=json)


def ls(
    folder: Folder,
    sort: Annotated[str, typer.Option(help="atom, density, coherence, or label.")] = "density",
    limit: Annotated[int | None, typer.Option(help="Show so many.")] = None,
    json: Json = False,
) -> None:
    """List the atoms."""
    from gradatoms.catalog.index import catalog, sort_rows
    from gradatoms.dictionary.io import load_atoms

    rows = sort_rows(catalog(load_atoms(folder)), sort)[:limit]
    emit({"atoms": rows}, _listing(rows), as_json=json)


def search(
    folder: Folder, query: Annotated[str, typer.Argument(help="Words to look for.")], json: Json = False
) -> None:
    """Find atoms by label, promoted tokens or examples."""
    from gradatoms.catalog.index import search_catalog
    from gradatoms.dictionary.io import load_atoms

    rows = search_catalog(load_atoms(folder), query)
    emit({"atoms": rows, "query": query}, _listing(rows) if rows else f"no atom matches {query!r}", as_json=json)


def show(folder: Folder, atom: Annotated[int, typer.Argument(help="Which atom.")], json: Json = False) -> None:
    """Everything about one atom."""
    from gradatoms.catalog.index import atom_page
    from gradatoms.dictionary.io import load_atoms

    page = atom_page(load_atoms(folder), atom)
    emit(page, _page(page), as_json=json)


def _listing(rows: list[dict[str, Any]]) -> str:
    cells = [
        [str(r["atom"]), r["label"] or "(unlabelled)", r["verdict"], number(r["density"]), number(r["coherence"])]
        for r in rows
    ]
    return table(["atom", "label", "verdict", "density", "coher."], cells, wide=1)


def _page(page: dict[str, Any]) -> str:
    lines = [
        f"atom {page['atom']}: {printable(page['label'] or '(unlabelled)')}",
        f"{page['verdict']}, "
        + ", ".join(f"{name} {number(page[name])}" for name in ("density", "coherence", "stability")),
    ]
    if page["sentence"]:
        lines.append(printable(page["sentence"]))
    for name, key in (("promoted", "promoted"), ("demoted", "demoted"), ("in neutral contexts", "neutral_promoted")):
        tokens = "  ".join(f"{printable(t['token'])!r} {t['delta_p']:+.3f}" for t in page[key][:6])
        lines.append(f"{name}: {tokens or '–'}")
    lines.append("top fitted examples:")
    lines += [f"  {e['weight']:.2f}  {cut(e['prompt'], 52)} →{cut(e['target'], 18)}" for e in page["examples"][:8]]
    lines.append("closest atoms: " + ", ".join(f"{n['atom']} ({n['cosine']:.2f})" for n in page["neighbours"]))
    return "\n".join(lines)
