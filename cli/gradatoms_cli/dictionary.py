"""``atoms fit``, ``eval``, ``encode``, ``export``, ``nearest``, ``push``, ``pull``, ``ls``, ``show`` and ``search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gradatoms_cli.output import Json, bars, cut, emit, metrics_table, number, printable, table

Folder = Annotated[Path, typer.Argument(help="An atoms folder, NAME.atoms.")]


def fit(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE...", help="A store, NAME.gstore; several are read as one.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write, NAME.atoms.")],
    hook: Annotated[str | None, typer.Option(help="Which hook, where the store has several.")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="online (classical), topk, batchtopk, jumprelu, gated, standard, matryoshka, matching_pursuit, abstopk, pca, kmeans."
        ),
    ] = "online",
    n_atoms: Annotated[str | None, typer.Option(help="Atoms in the dictionary.")] = None,
    k: Annotated[str | None, typer.Option(help="Atoms kept a row, where the method has it.")] = None,
    alpha: Annotated[str | None, typer.Option(help="online: lasso penalty.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    weight: Annotated[str | None, typer.Option(help="What a row counts for: none, loss, norm, concept.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many passes without gain on rows kept aside.")
    ] = None,
    settings: Annotated[
        list[str], typer.Option("--set", help="NAME=VALUE, any other setting of the method; repeatable.")
    ] = [],  # noqa: B006
    holdout: Annotated[float, typer.Option(help="Share of examples kept for scoring.")] = 0.25,
    checks: Annotated[bool, typer.Option(help="Fit the comparisons that verdicts rest on.")] = True,
    log: Annotated[list[str], typer.Option(help="tensorboard or wandb, beside log.jsonl; repeatable.")] = [],  # noqa: B006
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Fit a grid: --n-atoms, --k and --alpha take lists such as 128,256.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="--sweep: the model, where it has moved.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the fit.")] = None,
    json: Json = False,
) -> None:
    """Learn a dictionary of gradient atoms from a store; interrupted, the same command goes on."""
    from gradatoms.dictionary.fit import fit_store
    from gradatoms.dictionary.registry import make_config, parse_grid, parse_settings

    plain = {"epochs": epochs, "batch_size": batch_size, "weight": weight, "patience": patience, "seed": seed}
    chosen = {name: value for name, value in plain.items() if value is not None} | parse_settings(method, settings)
    lists = {"n_atoms": n_atoms, "k": k, "alpha": alpha}
    grid = parse_grid(method, {name: text for name, text in lists.items() if text is not None}, several=sweep)
    options: dict[str, Any] = {"hook": hook, "holdout": holdout, "checks": checks, "log_to": log}
    if sweep:
        from gradatoms.dictionary.sweep import sweep as run_sweep

        with bars() as progress:
            found = run_sweep(stores, out, method, grid, settings=chosen, model=model, progress=progress, **options)
        head, *rows = found.table()
        emit(found.to_dict() | {"out": str(out)}, f"{table(head, rows, wide=0)}\n\n{out / 'sweep.md'}", as_json=json)
        return
    if model is not None:
        raise typer.BadParameter("--model goes with --sweep; `atoms eval` measures steps after a fit")
    config = make_config(method, chosen | {name: values[0] for name, values in grid.items()})
    with bars() as progress:
        atoms, report = fit_store(stores, out, config, progress=progress, **options)
    if not report.metrics:  # a rank of torchrun that is not the first
        return
    value = report.to_dict() | {"out": str(out), "n_atoms": len(atoms)}
    emit(value, f"{out}: {len(atoms)} atoms at {atoms.hook}\n\n{metrics_table(value['metrics'])}", as_json=json)


def encode(
    folder: Folder,
    store: Annotated[Path, typer.Argument(help="A store, NAME.gstore.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write, NAME.h5.")],
    json: Json = False,
) -> None:
    """Sparse codes of every row of a store, as CSR in HDF5."""
    from gradatoms.dictionary.fit import encode_to
    from gradatoms.dictionary.io import load_atoms

    with bars() as progress:
        value = encode_to(load_atoms(folder), store, out, progress=progress)
    emit(value, f"{out}: {value['rows']} rows, {value['l0']:.2f} atoms a row", as_json=json)


def push(
    folder: Folder,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub, or a local folder.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    json: Json = False,
) -> None:
    """Upload atoms: only what the format names, without local paths."""
    from gradatoms.dictionary.hub import push as upload

    where = upload(folder, repo, private=not public, revision=revision)
    emit({"out": where}, where, as_json=json)


def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub, or a local folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write, NAME.atoms.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    json: Json = False,
) -> None:
    """Download atoms that somebody pushed."""
    from gradatoms.dictionary.hub import pull as download

    where = download(repo, out, revision=revision)
    emit({"out": str(where)}, str(where), as_json=json)


def export(
    folder: Folder,
    form: Annotated[
        str,
        typer.Argument(
            help="saelens; vector (safetensors); gguf (a control vector for llama.cpp); neuronpedia (JSON); site (pages)."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder (saelens, site) or file to write.")],
    atom: Annotated[
        list[int], typer.Option(help="vector, neuronpedia: only this atom, repeatable; gguf: which atom.")
    ] = [],  # noqa: B006
    norm: Annotated[
        float | None, typer.Option(help="gguf: a typical norm of h at the hook, so that scale 1 is strength 1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="neuronpedia: the model's tokenizer, where it has moved.")] = None,
    doubled: Annotated[
        bool, typer.Option("--doubled", help="saelens: signed codes as a TopK of twice the atoms.")
    ] = False,
    distil: Annotated[
        Path | None,
        typer.Option(help="saelens: a store to learn an encoder from, for codes that SAELens cannot compute."),
    ] = None,
    json: Json = False,
) -> None:
    """Atoms for other tools."""
    from gradatoms.dictionary.export import export_folder

    value = export_folder(folder, form, out, doubled=doubled, distil=distil, chosen=atom, norm=norm, model=model)
    emit(value, f"{out}: {value['note']}", as_json=json)


def nearest(
    folder: Folder,
    sae: Annotated[Path, typer.Option(help="A safetensors file with W_dec, or a SAELens folder.")],
    k: Annotated[int, typer.Option("-k", help="Features an atom.")] = 5,
    any_hook: Annotated[bool, typer.Option("--any-hook", help="Compare with another hook too.")] = False,
    json: Json = False,
) -> None:
    """The features of a public sparse autoencoder closest to each atom, beside what random directions reach."""
    from gradatoms.dictionary.io import load_atoms
    from gradatoms.dictionary.nearest import nearest_features

    value = nearest_features(load_atoms(folder), sae, k, any_hook=any_hook)
    emit(value, _nearest(value), as_json=json)


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
    sort: Annotated[
        str, typer.Option(help="A column: atom, label, verdict, density, coherence, gain, detection …")
    ] = "density",
    limit: Annotated[int | None, typer.Option(help="Show so many.")] = None,
    json: Json = False,
) -> None:
    """List the atoms."""
    from gradatoms.catalog.index import Query, open_index
    from gradatoms.dictionary.io import load_atoms

    query = Query(sort=sort, limit=-1 if limit is None else limit)
    rows = open_index(load_atoms(folder)).find(query).rows
    emit({"atoms": rows}, _listing(rows), as_json=json)


def search(
    folder: Folder, query: Annotated[str, typer.Argument(help="Words to look for.")], json: Json = False
) -> None:
    """Find atoms by label, promoted tokens or examples."""
    from gradatoms.catalog.index import Query, open_index
    from gradatoms.dictionary.io import load_atoms
    from gradatoms.errors import AtomsFormatError
    from gradatoms.labels.label import load_labels

    atoms = load_atoms(folder)
    if not load_labels(folder):
        raise AtomsFormatError(f"expected labelled atoms in {folder}, found no label; run `atoms label {folder}` first")
    rows = open_index(atoms).find(Query(text=query, limit=-1)).rows
    emit({"atoms": rows, "query": query}, _listing(rows) if rows else f"no atom matches {query!r}", as_json=json)


def show(folder: Folder, atom: Annotated[int, typer.Argument(help="Which atom.")], json: Json = False) -> None:
    """Everything about one atom."""
    from gradatoms.catalog.index import open_index, whole_page
    from gradatoms.dictionary.io import load_atoms

    atoms = load_atoms(folder)
    page = whole_page(open_index(atoms), atoms, atom)
    emit(page, _page(page), as_json=json)


def _listing(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            str(r["atom"]), ("(vague) " if r["scores"].get("vague") else "") + (r["label"] or "(unlabelled)"), r["verdict"],
            number(r["density"]), number(r["coherence"]), number(r["scores"].get("detection")),
        ]
        for r in rows
    ]  # fmt: skip
    return table(["atom", "label", "verdict", "density", "coher.", "detect."], cells, wide=1)


def _nearest(value: dict[str, Any]) -> str:
    null, sae = value["null"], value["sae"]
    cells = [
        [
            str(r["atom"]),
            r["label"] or "(unlabelled)",
            "  ".join(f"{n['feature']} ({n['cosine']:.2f})" for n in r["nearest"]),
        ]
        for r in value["atoms"]
    ]
    lines = [
        table(["atom", "label", "nearest features (cosine)"], cells, wide=1),
        "",
        f"best of {sae['features']} features, random direction: {null['mean']:.2f} on average, 95 in 100 below "
        f"{null['p95']:.2f}; atoms above that: {value['above_null']} of {len(cells)}",
    ]
    if sae["hook"] is None:
        lines.append(f"the file names no hook; the atoms are at {value['hook']}")
    elif sae["hook"] != value["hook"]:
        lines.append(f"the features are at {sae['hook']}, the atoms at {value['hook']}")
    return "\n".join(lines)


def _score(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float | int) else "–"


def _page(page: dict[str, Any]) -> str:
    lines = [
        f"atom {page['atom']}: {printable(page['label'] or '(unlabelled)')}",
        f"{page['verdict']}, "
        + ", ".join(f"{name} {number(page[name])}" for name in ("density", "coherence", "stability")),
    ]
    if page["sentence"]:
        lines.append(printable(page["sentence"]))
    if page["label"]:
        by = f"named by {printable(page['teacher'])}"
        lines.append(", ".join([by, *(f"{name} {_score(value)}" for name, value in page["scores"].items())]))
    if page["lookahead"]:
        moved = page["lookahead"]
        lines.append(
            f"injected at {moved['alpha']:.3f} ‖h‖: KL {page['kl']:.2f} nats here, {page['neutral_kl']:.2f} in neutral contexts; "
            f"gains {number(moved['own_gain'])} nats on its examples, {number(moved['other_gain'])} on others"
        )
    for name, key in (("promoted", "promoted"), ("demoted", "demoted"), ("in neutral contexts", "neutral_promoted")):
        tokens = "  ".join(f"{printable(t['token'])!r} {t['delta_p']:+.3f}" for t in page[key][:6])
        lines.append(f"{name}: {tokens or '–'}")
    lines.append("top fitted examples:")
    lines += [f"  {e['weight']:.2f}  {cut(e['prompt'], 52)} →{cut(e['target'], 18)}" for e in page["examples"][:8]]
    if page["near_misses"]:
        lines.append("near misses:")
        lines += [f"        {cut(e['prompt'], 52)} →{cut(e['target'], 18)}" for e in page["near_misses"][:3]]
    lines.append("closest atoms: " + ", ".join(f"{n['atom']} ({n['cosine']:.2f})" for n in page["neighbours"]))
    return "\n".join(lines)
