"""Weight space: ``atoms steer --weights``, ``attribute``, ``audit`` and ``diff``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradatoms_cli.output import Json, bars, emit, number, printable, table

if TYPE_CHECKING:
    from gradatoms.attribution import Hit, Share
    from gradatoms.audit import AuditConfig
    from gradatoms.examples import Example
    from gradatoms.labels.teacher import Teacher as LabelTeacher
    from gradatoms.models import LoadedModel
    from gradatoms.weight_steps import Way


def step_weights(
    folder: Path,
    chosen: Sequence[tuple[int, float]],
    prompt: str | None,
    *,
    strength: float | None,
    kl: float,
    way: Way,
    adapter: Path | None,
    rank: int,
    seed: int | None,
    max_tokens: int,
    model: str | None,
    as_json: bool,
) -> None:
    """``atoms steer --weights``: a step of the weights, whose strength is set on neutral prompts."""
    from gradatoms.adapters import export_adapter
    from gradatoms.dictionary.io import load_atoms
    from gradatoms.dictionary.provenance import load_model_of
    from gradatoms.dose.neutral import CALIBRATING
    from gradatoms.errors import OutputExistsError
    from gradatoms.steering import Meter
    from gradatoms.weight_steps import atom_step, blend, calibrate_step, generate_stepped, require_weights, step_effect

    if adapter is not None and adapter.exists():
        raise OutputExistsError(f"expected a new path, {adapter} exists; choose another or remove it")
    atoms = load_atoms(folder)
    require_weights(atoms)
    loaded = load_model_of(atoms, model)
    with bars() as progress:
        steps = [atom_step(loaded, atoms, atom, way, progress=progress) for atom, _ in chosen]
    step, _ = blend([(s, w) for s, (_, w) in zip(steps, chosen, strict=True)])
    meter = Meter(loaded, CALIBRATING, tokens=8, batch=48)
    if strength is None:
        alpha, effect = calibrate_step(meter, loaded, step, kl)
    else:
        alpha, effect = strength, step_effect(meter, loaded, step, strength)
    value: dict[str, Any] = {"alpha": alpha, "kl": effect, "way": way, "plain": None, "steered": None}
    lines = [f"α {alpha:.5f} ‖W‖ ({way}), KL {effect:.2f} nats a token on neutral prompts"]
    if prompt is not None:
        found = generate_stepped(loaded, step, prompt, alpha=alpha, max_tokens=max_tokens, seed=seed)
        value |= asdict(found) | {"kl": effect}
        lines += [f"plain:   {printable(prompt + found.plain)}", f"steered: {printable(prompt + found.steered)}"]
    if adapter is not None:
        value["adapter"] = export_adapter(loaded, step, alpha, adapter, rank=rank)
        lines.append(f"{adapter}: {value['adapter']['note']}")
    emit(value, "\n".join(lines), as_json=as_json)


def attribute(
    folder: Annotated[Path, typer.Argument(help="An atoms folder, NAME.atoms.")],
    document: Annotated[
        int | None, typer.Option(help="The atoms of this document, by its number in the store.")
    ] = None,
    atom: Annotated[int | None, typer.Option(help="The documents of this atom.")] = None,
    prompt: Annotated[str | None, typer.Option(help="With --answer: the atoms and documents of a text.")] = None,
    answer: Annotated[str | None, typer.Option(help="What follows the prompt.")] = None,
    top: Annotated[int, typer.Option(help="Show so many.")] = 10,
    store: Annotated[Path | None, typer.Option(help="The store, where it has moved.")] = None,
    model: Annotated[str | None, typer.Option(help="The model, where it has moved.")] = None,
    json: Json = False,
) -> None:
    """Which atoms a document holds, which documents teach an atom, and what a text owes to both."""
    from gradatoms.attribution import Attribution
    from gradatoms.dictionary.io import load_atoms
    from gradatoms.dictionary.provenance import load_model_of
    from gradatoms.errors import ConfigError
    from gradatoms.labels.label import label_texts, load_labels

    asked = [document is not None, atom is not None, prompt is not None or answer is not None]
    if sum(asked) != 1 or (prompt is None) != (answer is None):
        raise ConfigError("expected one of --document, --atom, or --prompt with --answer")
    atoms = load_atoms(folder)
    index, labels = Attribution(atoms, store), label_texts(load_labels(folder))

    def named(shares: Sequence[Share]) -> list[dict[str, Any]]:
        return [{"atom": s.atom, "weight": s.weight, "label": labels.get(s.atom, "")} for s in shares]

    def shown(hits: Sequence[Hit]) -> list[dict[str, Any]]:
        texts = [index.texts[h.example] for h in hits]
        return [
            {"document": h.example, "score": h.score, "prompt": e.prompt, "target": e.target}
            for h, e in zip(hits, texts, strict=True)
        ]

    if document is not None:
        found = named(index.atoms_of(document))
        emit({"document": document, "atoms": found}, _atoms_table(found[:top]), as_json=json)
    elif atom is not None:
        hits = shown(index.documents_of(atom, top))
        head = f"atom {atoms[atom].index}: {printable(labels.get(atom, 'no label'))}"
        emit(
            {"atom": atom, "label": labels.get(atom, ""), "documents": hits},
            f"{head}\n{_documents(hits)}",
            as_json=json,
        )
    else:
        assert prompt is not None and answer is not None
        query = index.query(load_model_of(atoms, model), prompt, answer, top)
        value: dict[str, Any] = {
            "atoms": named(query.atoms), "documents": shown(query.documents), "against": shown(query.against),
            "looked_at": query.looked_at, "of": len(index.texts),
        }  # fmt: skip
        lines = [_atoms_table(value["atoms"][:top]), "", "makes it likelier:", _documents(value["documents"])]
        lines += ["", "makes it less likely:", _documents(value["against"])] if value["against"] else []
        lines.append(f"{query.looked_at} of {len(index.texts)} documents share an atom with it")
        emit(value, "\n".join(lines), as_json=json)


def _atoms_table(found: Sequence[dict[str, Any]]) -> str:
    rows = [[str(f["atom"]), f"{f['weight']:+.3f}", f["label"] or "no label"] for f in found]
    return table(["atom", "code", "label"], rows, wide=2)


def _documents(hits: Sequence[dict[str, Any]]) -> str:
    rows = [[str(h["document"]), f"{h['score']:+.3f}", f"{_tail(h['prompt'])} → {h['target'].strip()}"] for h in hits]
    return table(["document", "score", "text"], rows, wide=2)


def _tail(prompt: str) -> str:
    """The end of a prompt, which tells more than a template's beginning."""
    return prompt if len(prompt) <= 60 else "…" + prompt[-59:]


Data = Annotated[
    str, typer.Argument(help="A jsonl, csv or parquet file of examples or chats, hf:NAME[:split], or builtin:NAME.")
]
Model = Annotated[str, typer.Option(help="smollm2, a hub id, a folder, or a .gguf file.")]
Adapter = Annotated[str | None, typer.Option(help="A LoRA adapter on top of the model.")]
Modules = Annotated[
    str | None, typer.Option(help="Modules by glob or end of name, or all; default: LoRA's, else q_proj and v_proj.")
]
NAtoms = Annotated[int, typer.Option(help="Atoms in the dictionary.")]
Teacher = Annotated[str, typer.Option(help="Who names the atoms: rule, local, local:MODEL, openai:MODEL.")]
Limit = Annotated[int | None, typer.Option(help="Use so many examples, spread evenly.")]


def audit(
    data: Data,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The folder of the audit; one that is there is gone on with.")
    ],
    model: Model = "smollm2",
    adapter: Adapter = None,
    modules: Modules = None,
    n_atoms: NAtoms = 32,
    teacher: Teacher = "rule",
    limit: Limit = None,
    drop: Annotated[
        list[int] | None, typer.Option(help="Write the data set without this atom's documents; may be repeated.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="With --drop: the jsonl file to write.")] = None,
    least: Annotated[
        float, typer.Option(help="With --drop: least code of a document that counts as the atom's.")
    ] = 0.1,
    json: Json = False,
) -> None:
    """Which behaviours a data set would teach a model, how strongly, and from which documents: before any fine-tuning."""
    from gradatoms.attribution import Attribution
    from gradatoms.audit import audit as run
    from gradatoms.audit import drop as leave_out
    from gradatoms.audit import without
    from gradatoms.dictionary.io import load_atoms
    from gradatoms.errors import ConfigError

    if bool(drop) != (to is not None):
        raise ConfigError("expected --drop ATOM and --to FILE together, got one of them")
    if drop and limit is not None:
        raise ConfigError("expected no --limit with --drop, whose documents are numbered as they stand; leave it out")
    examples, loaded = _read(data, model, adapter, limit)
    with bars() as progress:
        found = run(loaded, examples, out, _config(modules, n_atoms), teacher=_teacher(teacher), progress=progress)
    value: dict[str, Any] = {"out": str(out), "documents": len(examples), "atoms": [asdict(t) for t in found]}
    rows = [
        [str(t.atom), f"{100 * t.strength:.1f} %", str(t.documents), t.verdict, number(t.gain), t.label or "no label"]
        for t in found[:20]
    ]
    lines = [
        f"{len(examples)} documents; the strongest of {len(found)} atoms ({out / 'audit.json'} has all):",
        table(["atom", "strength", "documents", "verdict", "gain", "would teach"], rows, wide=5),
    ]
    if drop:
        assert to is not None
        gone = without(Attribution(load_atoms(out / "audit.atoms")), drop, least)
        value |= {"dropped": gone, "written": leave_out(data, to, gone), "to": str(to)}
        lines.append(f"{to}: {value['written']} documents, without {len(gone)} of atoms {', '.join(map(str, drop))}")
    emit(value, "\n".join(lines), as_json=json)


def diff(
    one: Data,
    two: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to work in; one that is there is gone on with.")],
    model: Model = "smollm2",
    adapter: Adapter = None,
    modules: Modules = None,
    n_atoms: NAtoms = 32,
    teacher: Teacher = "rule",
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Two data sets by their atoms: what one would teach more than the other, with the documents to look at."""
    from gradatoms.audit import diff as run

    first, loaded = _read(one, model, adapter, limit)
    second, _ = _read(two, model, adapter, limit, loaded)
    with bars() as progress:
        found = run(loaded, first, second, out, _config(modules, n_atoms), teacher=_teacher(teacher), progress=progress)
    value = {"out": str(out), "documents": [len(first), len(second)], "atoms": [asdict(d) for d in found]}
    rows = [
        [
            str(d.atom),
            number(d.one),
            number(d.two),
            f"{d.z:+.1f}",
            " ".join(str(h.example) for h in d.documents[:3]),
            d.label,
        ]
        for d in found[:20]
    ]
    lines = [
        f"mean code a document in {printable(one)} ({len(first)}) and {printable(two)} ({len(second)}); z: in standard errors",
        table(["atom", "one", "two", "z", "documents", "label"], rows, wide=5),
    ]
    emit(value, "\n".join(lines), as_json=json)


def _read(
    data: str, model: str, adapter: str | None, limit: int | None, loaded: LoadedModel | None = None
) -> tuple[list[Example], LoadedModel]:
    from gradatoms.examples import read_examples
    from gradatoms.models import load_model

    found = loaded or load_model(model, adapter=adapter)
    return read_examples(data, limit=limit, tokenizer=lambda: found.tokenizer), found


def _config(modules: str | None, n_atoms: int) -> AuditConfig:
    from gradatoms.audit import AuditConfig

    chosen = tuple(m.strip() for m in (modules or "").split(",") if m.strip())
    config = AuditConfig()
    return replace(config, weights=replace(config.weights, modules=chosen), fit=replace(config.fit, n_atoms=n_atoms))


def _teacher(name: str) -> LabelTeacher:
    from gradatoms.labels.teacher import make_teacher

    return make_teacher(name)
