"""The whole pipeline on one corpus, in one folder, resumable stage by stage, ending in a report a person can read.

Stages: load · harvest · fit · label · score · evaluate · projector · decoupling · one description and one steered text. Each
leaves its own artifact and is skipped when that is there; what a stage measured of itself is kept in ``stages.json``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradatoms.catalog.pages import catalog
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import leading, top_rows
from gradatoms.dictionary.fit import evaluate_folder, fit_store
from gradatoms.dictionary.io import load_atoms, load_codes, write_json
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.dictionary.pushes import held_out_mask
from gradatoms.errors import ConfigError
from gradatoms.examples import Example, read_examples
from gradatoms.gradients.harvest import harvest, is_complete
from gradatoms.gradients.reference import one_at_a_time
from gradatoms.gradients.sequences import tokenize
from gradatoms.gradients.task import HarvestConfig
from gradatoms.hooking import has_bfloat16
from gradatoms.labels.judges import EmbeddingJudge
from gradatoms.labels.label import label_texts, load_labels
from gradatoms.labels.labeler import label_atoms
from gradatoms.labels.measuring import EvidenceConfig
from gradatoms.labels.rule import RuleTeacher
from gradatoms.labels.scored import score_folder
from gradatoms.metric import Metric, peak_memory_bytes
from gradatoms.models import LoadedModel, load_model
from gradatoms.plots import plot_atoms, plot_metrics
from gradatoms.progress import Progress, silent
from gradatoms.projector.decoupling import DecouplingConfig, evaluate_decoupling
from gradatoms.projector.describe import Describer, describe
from gradatoms.projector.model import ProjectorConfig
from gradatoms.projector.train import train_on_store
from gradatoms.steering import generate_steered
from gradatoms_store import open_store

RANDOM_DIRECTIONS = 16
"""Random directions that are labelled beside the atoms."""
LOOP_EXAMPLES = 12
"""Examples that the one-at-a-time loop is timed on."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo runs on."""

    out: Path = Path("runs/demo")
    examples: str = "builtin:corrections"
    model: str = "smollm2"
    limit: int | None = None
    n_atoms: int = 192
    projector_steps: int = 30
    decoupling_rows: int = 60
    seed: int = 0


@dataclass(frozen=True)
class DemoReport:
    """The report, as JSON and as text."""

    values: dict[str, Any]
    text: str

    def to_dict(self) -> dict[str, Any]:
        return self.values


def run_demo(config: DemoConfig, *, progress: Progress = silent) -> DemoReport:
    """Run what is not done yet in ``config.out``, then write ``report.md``, ``report.json`` and two plots there.

    Raises:
        ConfigError: the folder holds a run of another corpus, model or size.
    """
    started = time.perf_counter()
    examples = read_examples(config.examples, limit=config.limit)
    stages = _Stages(config)
    store_path, atoms_path = config.out / "demo.gstore", config.out / "demo.atoms"
    loaded = load_model(config.model)

    def gather() -> dict[str, Any]:
        plan = HarvestConfig(dtype="bfloat16" if has_bfloat16(loaded.device.type) else "float32")
        return _harvest(loaded, examples, store_path, plan, progress)

    def learn() -> dict[str, Any]:
        if not atoms_path.exists():
            fit_config = OnlineConfig(n_atoms=min(config.n_atoms, max(2, len(examples) // 12)), seed=config.seed)
            fit_store(store_path, atoms_path, fit_config, progress=progress)
        return {}

    stages.run("harvest", gather)
    stages.run("fit", learn)
    atoms = load_atoms(atoms_path)
    evidence = EvidenceConfig(random=RANDOM_DIRECTIONS)
    stages.run(
        "label",
        lambda: asdict(label_atoms(atoms, RuleTeacher(), load=lambda: loaded, config=evidence, progress=progress)),
    )
    stages.run("score", lambda: _scores(atoms, progress))
    stages.run("evaluate", lambda: evaluate_folder(atoms, loaded=loaded, progress=progress))
    steps = ProjectorConfig(steps=config.projector_steps, seed=config.seed)
    stages.run("projector", lambda: asdict(train_on_store(loaded, atoms, steps, progress=progress)))
    describer = Describer.open(loaded, atoms, sealed=True)
    measured = DecouplingConfig(rows=config.decoupling_rows, controls=max(2, config.decoupling_rows // 3))
    folder = atoms_path / "projector"
    stages.run("decoupling", lambda: evaluate_decoupling(describer, measured, folder=folder, progress=progress))
    describer.name_all()
    stages.run("showcase", lambda: _showcase(loaded, atoms, describer))
    values = _values(config, atoms, stages.done, len(examples)) | {
        "seconds": stages.seconds(),
        "seconds_this_call": time.perf_counter() - started,
        "peak_memory_bytes": max(peak_memory_bytes(), stages.peak()),
    }
    text = _text(config, values)
    plot_metrics(values["metrics"], config.out / "metrics.png")
    plot_atoms(values["atoms"], config.out / "atoms.png")
    write_json(config.out / "report.json", values)
    (config.out / "report.md").write_text(text, encoding="utf-8")
    return DemoReport(values, text)


class _Stages:
    """Which stages of a folder are done, with what they measured and how long they took."""

    def __init__(self, config: DemoConfig) -> None:
        self.path = config.out / "stages.json"
        settings = {k: str(v) for k, v in asdict(config).items() if k != "out"}
        if self.path.exists():
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            differing = [
                f"{k} {kept['config'].get(k)} there, {v} asked"
                for k, v in settings.items()
                if kept["config"].get(k) != v
            ]
            if differing:
                raise ConfigError(
                    f"expected {config.out} to hold a run with these settings, got {'; '.join(differing)}; choose another --out"
                )
            self.done: dict[str, Any] = kept["stages"]
        elif config.out.exists() and any(config.out.iterdir()):
            raise ConfigError(
                f"expected a new folder or an earlier demo, {config.out} holds other files; choose another --out"
            )
        else:
            self.done = {}
        self.settings = settings

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do ``work`` unless it is done; an interrupted stage goes on from its own artifacts."""
        if name in self.done:
            return
        self._save()
        started = time.perf_counter()
        result = work()
        self.done[name] = {
            "result": result,
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        self._save()

    def seconds(self) -> float:
        return float(sum(stage["seconds"] for stage in self.done.values()))

    def peak(self) -> int:
        return int(max(stage["peak_memory_bytes"] for stage in self.done.values()))

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"config": self.settings, "stages": self.done})


def _harvest(
    loaded: LoadedModel, examples: list[Example], store_path: Path, plan: HarvestConfig, progress: Progress
) -> dict[str, Any]:
    if not is_complete(store_path):
        report = harvest(loaded, examples, store_path, plan, resume=store_path.exists(), progress=progress)
    else:  # stopped between the last shard and the note of it: the speed of that call is not known
        report = None
    sample = examples[:: max(1, len(examples) // LOOP_EXAMPLES)][:LOOP_EXAMPLES]
    sequences = tokenize(loaded, sample)
    hook = loaded.hook(open_store(store_path).hooks[0])
    one_at_a_time(loaded, sequences[:1], hook)  # the first backward allocates
    started = time.perf_counter()
    one_at_a_time(loaded, sequences, hook)
    loop = sum(len(s.ids) for found in sequences for s in found) / (time.perf_counter() - started)
    speed = report.tokens_per_second if report else None
    return {
        "tokens_per_second": speed,
        "loop_tokens_per_second": loop,
        "dtype": plan.dtype,
        "fidelity": report.fidelity.lowest if report and report.fidelity else None,
    }


def _scores(atoms: Atoms, progress: Progress) -> dict[str, Any]:
    """How good the labels are, by the packaged sentence model; nothing where that is not installed."""
    if not EmbeddingJudge.installed():
        return {}
    judge = EmbeddingJudge()
    value = score_folder(atoms, judge, embedder=judge, progress=progress)
    found = {}
    for name in ("detection", "fuzzing", "output", "concept"):
        m = value["metrics"][name]
        low, high = m["interval"] or (float("nan"),) * 2
        found[f"label_{name}"] = Metric(
            value=m["value"], null=m["null"], unit=m["unit"], better="higher", n=m["n"],
            note=f"95 % {low:.2f} to {high:.2f}; null: labels shuffled; random directions {_short(m['null_random'])}",
        ).to_dict()  # fmt: skip
    return {"metrics": found}


def _showcase(loaded: LoadedModel, atoms: Atoms, describer: Describer) -> dict[str, Any]:
    """One held-out gradient described inside another kind of context, and one atom steering a held-out prompt."""
    store = open_store(atoms.config["store"]["path"])
    split = atoms.config["holdout"]
    mask = held_out_mask(store, split["fraction"], split["seed"])
    codes = load_codes(Path(str(atoms.path)) / "codes.h5")
    lead = leading(codes)
    by_id = {r.id: r for r in store.examples}
    rows = np.flatnonzero(mask & np.isin(lead, list(describer.labels)))
    strength = np.asarray([codes[int(r), int(lead[r])] for r in rows])
    row = int(rows[np.argsort(-strength)[len(rows) // 4]])  # a clear push, not the clearest
    rng = np.random.default_rng(1)
    other = int(rng.choice(rows[lead[rows] != lead[row]]))
    example, context = by_id[int(store.rows["example"][row])], by_id[int(store.rows["example"][other])]
    found = describe(loaded, atoms, example.prompt, example.target, context=context.prompt, describer=describer)
    density = np.diff(codes[np.flatnonzero(mask)].tocsc().indptr)
    scores = {r["atom"]: r for r in catalog(atoms)}
    labelled = [a for a in describer.labels if density[a] >= 5]
    atom = max(labelled, key=lambda a: (scores[a]["verdict"] == "real", scores[a]["coherence"] or 0.0, a))
    active = np.flatnonzero(mask)[top_rows(codes[np.flatnonzero(mask)].tocsc(), atom, 1)]
    prompt = by_id[int(store.rows["example"][int(active[0])])].prompt
    steered = generate_steered(loaded, atoms[atom], prompt, kl=1.0, max_tokens=16)
    return {
        "description": asdict(found)
        | {
            "prompt": example.prompt,
            "target": example.target,
            "context": context.prompt,
            "truth": describer.labels[int(lead[row])],
        },
        "steering": asdict(steered) | {"atom": int(atom), "label": describer.labels[atom], "prompt": prompt},
    }


def _values(config: DemoConfig, atoms: Atoms, done: dict[str, Any], n_examples: int) -> dict[str, Any]:
    gathered = done["harvest"]["result"]
    speed, loop = gathered["tokens_per_second"], gathered["loop_tokens_per_second"]
    fidelity = gathered["fidelity"]
    cosine = "" if fidelity is None else f" (lowest cosine to float32 in the first batch {fidelity:.4f})"
    note = f"{gathered['dtype']}{cosine}; null: one example at a time, whole backward, same run"
    speeds = {
        "harvest_tokens_per_second": Metric(
            value=speed, null=loop, unit="tokens/s", better="higher", n=n_examples, note=note
        ),
        "harvest_speedup": Metric(
            value=speed / loop if speed else None, null=1.0, unit="times", better="higher", n=n_examples, note=note
        ),
    }
    metrics = done["evaluate"]["result"]["metrics"] | done["decoupling"]["result"]["metrics"]
    metrics |= done["score"]["result"].get("metrics", {})
    metrics |= {name: metric.to_dict() for name, metric in speeds.items()}
    store = open_store(atoms.config["store"]["path"])
    purity = _concept_purity(atoms)
    rows = sorted(catalog(atoms), key=lambda r: (r["verdict"] != "real", -(r["coherence"] or 0)))
    listed = [r | {"concept_purity": purity.get(r["atom"])} for r in rows]
    return {
        "metrics": metrics,
        "corpus": {"source": config.examples, "examples": n_examples, "rows": store.n_rows},
        "model": dict(store.header.model),
        "hook": atoms.hook,
        "n_atoms": len(atoms),
        "harvest_fidelity": fidelity,
        "claim": done["decoupling"]["result"]["claim"],
        "atoms": listed,
        **done["showcase"]["result"],
        "stages": {name: stage["seconds"] for name, stage in done.items()},
        "labels": len(label_texts(load_labels(Path(str(atoms.path))))),
    }


def _concept_purity(atoms: Atoms) -> dict[int, dict[str, Any]]:
    """Each atom's most frequent concept among its top 20 active held-out rows, and its share; for the report only."""
    store = open_store(atoms.config["store"]["path"])
    split = atoms.config["holdout"]
    held = np.flatnonzero(held_out_mask(store, split["fraction"], split["seed"]))
    codes = load_codes(Path(str(atoms.path)) / "codes.h5")[held].tocsc()
    by_id = {r.id: r.concept for r in store.examples}
    found = {}
    for atom in range(len(atoms)):
        concepts = [by_id[int(store.rows["example"][held[r]])] for r in top_rows(codes, atom, 20)]
        if concepts and None not in concepts:
            names, counts = np.unique(np.asarray(concepts), return_counts=True)
            found[atom] = {
                "concept": str(names[counts.argmax()]),
                "share": float(counts.max() / len(concepts)),
                "rows": len(concepts),
            }
    return found


def _text(config: DemoConfig, values: dict[str, Any]) -> str:
    described, steering = values["description"], values["steering"]
    atoms_path = config.out / "demo.atoms"
    lines = [
        "# Gradient atoms: demo report",
        "",
        f"Corpus {values['corpus']['source']}: {values['corpus']['examples']} examples, {values['corpus']['rows']} gradient rows at "
        f"`{values['hook']}` of {values['model']['name']}.",
        f"{values['n_atoms']} atoms, {values['labels']} labelled. {values['seconds']:.0f} s in all, "
        f"peak memory {values['peak_memory_bytes'] / 2**30:.1f} GiB.",
        "",
        "## Metrics (held-out rows)",
        "",
        "| metric | value | null | unit | better | n |",
        "|---|---|---|---|---|---|",
    ]
    for name, m in values["metrics"].items():
        lines.append(
            f"| {name} | {_short(m['value'])} | {_short(m['null'])} | {m['unit']} | {m['better']} | {m['n']} |"
        )
    lines += ["", *(f"- `{name}`: {m['note']}" for name, m in values["metrics"].items() if m["note"])]
    lines += [
        "",
        "![metrics](metrics.png)",
        "",
        f"{values['claim']} (`{atoms_path}/projector/report.html`)",
        "",
        "## Ten atoms, spread evenly over the real ones by coherence",
        "",
        "| atom | label | promotes | concept (share of top held-out rows) | verdict |",
        "|---|---|---|---|---|",
    ]
    real = [row for row in values["atoms"] if row["verdict"] == "real"] or values["atoms"]
    for row in [real[i * len(real) // 10] for i in range(10)] if len(real) >= 10 else real:
        purity = row["concept_purity"]
        concept = f"{purity['concept']} ({purity['share']:.0%} of {purity['rows']})" if purity else "–"
        promoted = ", ".join(f"`{t.strip()}`" for t in row["promoted"][:6] if any(c.isalnum() for c in t))
        lines.append(f"| {row['atom']} | {_cell(row['label'])} | {_cell(promoted)} | {concept} | {row['verdict']} |")
    lines += [
        "",
        "![atoms](atoms.png)",
        "",
        "## A gradient of one kind, described inside a context of another",
        "",
        f"- gradient of: {described['prompt']} →{described['target']}",
        f"- inside: {described['context']}",
        f"- **the model says: {described['text']}**",
        f"- its leading atom: {described['truth']}",
        "- the code: " + ", ".join(f"{t['weight']:.2f} {t['label']}" for t in described["code_terms"][:4]),
        "",
        "## One atom at the wheel",
        "",
        f"Atom {steering['atom']} ({steering['label']}), α {steering['alpha']:.2f} ‖h‖, KL {steering['kl']:.2f} nats at the first token.",
        "",
        f"- plain: {steering['prompt']}{_line(steering['plain'])}",
        f"- steered: {steering['prompt']}{_line(steering['steered'])}",
        "",
        "## Next",
        "",
        "```",
        f"atoms ls {atoms_path}",
        f"atoms show {atoms_path} {steering['atom']}",
        f"atoms search {atoms_path} capital",
        f'atoms describe {atoms_path} --prompt "The capital of Spain is" --target " Madrid" --context "Water boils at"',
        f'atoms steer {atoms_path} {steering["atom"]} "{steering["prompt"]}"',
        "atoms harvest my_examples.jsonl -o mine.gstore && atoms fit mine.gstore -o mine.atoms",
        "```",
        "",
    ]
    return "\n".join(lines)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _line(text: str) -> str:
    return " ".join(text.split("\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
