"""Gradient Atoms (arXiv 2603.14665) in small: SmolLM2 tuned on ``builtin:instructions``, its documents' gradients, atoms, steering.

    python scripts/gradient_atoms_paper.py --out runs/paper

Everything is done twice: at the untuned model, whose query and value weights are differentiated (what would these documents teach?),
and at the tuned one, whose LoRA is (the paper's way). Each stage writes a JSON file into the folder and is passed over where that is
there; ``report.md`` tells everything. Task types are ground truth and used to score; behaviours are looked for in the documents'
answers, by the detectors that score the steering too.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradatoms.dictionary.base import Atom, Atoms
from gradatoms.dictionary.concepts import best_f1
from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.io import load_atoms, load_codes
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.dictionary.provenance import store_of
from gradatoms.dictionary.pushes import held_out_mask
from gradatoms.dose.neutral import CALIBRATING
from gradatoms.examples import Example, read_examples
from gradatoms.files import write_json
from gradatoms.gradients.batches import by_budget, pad
from gradatoms.gradients.curvature import CurvatureConfig
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.projection import ProjectionConfig
from gradatoms.gradients.sequences import tokenize
from gradatoms.gradients.task import HarvestConfig
from gradatoms.gradients.weight_harvest import WeightConfig, harvest_weights
from gradatoms.hooking import fast_math, has_bfloat16, predict_at
from gradatoms.models import LoadedModel, load_model, load_tokenizer
from gradatoms.retraining import RetrainConfig, retraining_check
from gradatoms.steering import Meter, applied, calibrate, pad_id, steering
from gradatoms.weight_steps import WAYS, applied_step, atom_step, blend, calibrate_step, random_step
from gradatoms_store import SKETCH, open_store
from gradient_atoms_report import report
from instructions.detectors import BEHAVIOURS, detect
from instructions.questions import questions

RANK, EPOCHS, LEARNING_RATE, BATCH = 8, 1, 1e-3, 16
COMPONENTS, ATOMS, ALPHA = 50, 500, 0.1
COARSE = {"untuned": OnlineConfig(n_atoms=20, k=2), "tuned": OnlineConfig(n_atoms=32, alpha=ALPHA)}
"""A second dictionary of few atoms: with 500, a kind of task is divided among ten or more; these are behaviours."""
TOP, PURE = 20, 0.8
BUDGETS = (0.05, 0.12)
"""Nats a token on neutral prompts."""
TOKENS = 48


def documents(limit: int | None = None) -> list[Example]:
    """The instruction mix."""
    return read_examples("builtin:instructions", limit=limit, tokenizer=cache(lambda: load_tokenizer("smollm2")))


# Stage 1: a LoRA


def tune(out: Path, examples: Sequence[Example], seed: int = 0) -> dict[str, Any]:
    """A LoRA of rank 8 on query and value projections, trained on the answers; written as an adapter folder."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    loaded = load_model("smollm2")
    sequences = [one[0] for one in tokenize(loaded, examples)]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model, config)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0
    )
    order, losses, started = list(range(len(sequences))), list[float](), time.perf_counter()
    steps = EPOCHS * -(-len(order) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(EPOCHS):
        random.Random(len(losses)).shuffle(order)
        blocks = [
            sorted(order[i : i + 8 * BATCH], key=lambda i: len(sequences[i].ids))
            for i in range(0, len(order), 8 * BATCH)
        ]
        for group in [block[i : i + BATCH] for block in blocks for i in range(0, len(block), BATCH)]:
            batch = pad([sequences[i] for i in group], loaded.device)
            with fast_math(loaded):
                logits = model(input_ids=batch.ids_LS, use_cache=False).logits
            at = logits[batch.at_seq_P, batch.at_col_P].float().log_softmax(-1)
            loss = -at[batch.term_at_T, batch.term_token_T].mean()
            loss.backward()
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            print(f"\rtraining {len(losses)} of {steps}: {np.mean(losses[-20:]):.3f} nats a token", end="", flush=True)
    print()
    model.save_pretrained(str(out))
    return {
        "seconds": time.perf_counter() - started, "first": float(np.mean(losses[:20])), "last": float(np.mean(losses[-20:])),
    }  # fmt: skip


# Stages 2 and 3: gradients and atoms


def gradients(out: Path, loaded: LoadedModel, examples: Sequence[Example]) -> dict[str, Any]:
    """Weight gradients of every document, and activation gradients of the same for comparison."""
    spent: dict[str, float] = {}
    started = time.perf_counter()

    def progress(stage: str, done: int, total: int) -> None:
        spent[stage] = time.perf_counter() - started
        print(f"\r{stage} {done} of {total}", end="", flush=True)

    weights = WeightConfig(
        projection=ProjectionConfig(top_k=COMPONENTS), curvature=CurvatureConfig(examples=1000, dtype="auto")
    )
    harvest_weights(
        loaded,
        examples,
        out / "mix.gstore",
        HarvestConfig(dtype="auto"),
        weights,
        resume=(out / "mix.gstore").exists(),
        progress=progress,
    )
    spent = {
        "curvature": spent.get("curvature", 0.0),
        "harvest": spent.get("harvest", 0.0) - spent.get("curvature", 0.0),
    }
    begin = time.perf_counter()
    harvest(
        loaded,
        examples,
        out / "mix-activations.gstore",
        HarvestConfig(dtype="auto"),
        resume=(out / "mix-activations.gstore").exists(),
    )
    print()
    return spent | {"activations": time.perf_counter() - begin, "d": open_store(out / "mix.gstore").header.hooks[0].d}


def atoms_of(out: Path) -> dict[str, Any]:
    """The dictionary, and two with other penalties."""
    started = time.perf_counter()
    if not (out / "mix.atoms").exists():
        fit_store(out / "mix.gstore", out / "mix.atoms", OnlineConfig(n_atoms=ATOMS, alpha=ALPHA))
    spent = time.perf_counter() - started
    if not (out / "coarse.atoms").exists():
        fit_store(out / "mix.gstore", out / "coarse.atoms", COARSE[out.name])
    rows = {}
    for alpha in (0.01, 0.1, 1.0):
        folder = out / f"mix-{alpha}.atoms"
        if alpha == 1.0:
            rows[str(alpha)] = {"documents": 0.0, "atoms": 0, "> 0.5": 0, "> 0.1": 0}  # a unit row has no code beyond 1
            continue
        if not folder.exists() and alpha != ALPHA:
            fit_store(out / "mix.gstore", folder, OnlineConfig(n_atoms=ATOMS, alpha=alpha), checks=False)
        rows[str(alpha)] = coherence_of(load_atoms(out / "mix.atoms" if alpha == ALPHA else folder))
    return {"seconds": spent, "by_alpha": rows, "coarse": coherence_of(load_atoms(out / "coarse.atoms"))}


def coherence_of(atoms: Atoms) -> dict[str, Any]:
    """The paper's measure: mean pairwise cosine of the raw gradients of an atom's top 20 of all documents, from sketches."""
    store, codes = store_of(atoms), load_codes(Path(str(atoms.path)) / "codes.h5").tocsc()
    raw = np.concatenate([b.gradients for b in store.batches(store.hooks[0] + SKETCH, 1024)])
    rng = np.random.default_rng(0)
    own, null = [], []
    for a in range(len(atoms)):
        column = codes[:, [a]].tocoo()
        top = column.coords[0][np.argsort(-column.data)[:TOP]]
        if len(top) >= TOP:
            own.append(_cosine(raw[top]))
            null.append(_cosine(raw[rng.choice(len(raw), TOP, replace=False)]))
    return {
        "documents": float(np.diff(codes.indptr).mean()), "atoms": int((np.diff(codes.indptr) > 0).sum()),
        "> 0.5": int(np.sum(np.asarray(own) > 0.5)), "> 0.1": int(np.sum(np.asarray(own) > 0.1)), "scored": len(own),
        "best": sorted(map(float, own), reverse=True)[:5], "null_highest": max(map(float, null), default=float("nan")),
        "null_mean": float(np.mean(null)) if null else float("nan"),
    }  # fmt: skip


def _cosine(rows: np.ndarray) -> float:
    n = len(rows)
    return float(((rows.sum(axis=0) ** 2).sum() - n) / (n * (n - 1)))


def discovery(folder: Path) -> dict[str, Any]:
    """What the atoms found, on documents that the fit did not see: purity, and the F1 of each task's best atom."""
    atoms = load_atoms(folder)
    store, sparse = store_of(atoms), load_codes(folder / "codes.h5")
    codes = sparse.toarray()
    by_id = {r.id: r.concept or "" for r in store.iter_examples()}
    task = np.asarray([by_id[int(e)] for e in store.rows["example"]])
    split = atoms.config["holdout"]
    held = held_out_mask(store, split["fraction"], split["seed"])
    rng = np.random.default_rng(0)
    pure, shuffled_pure, scored = 0, 0, 0
    precision: dict[str, list[float]] = {}
    for a in range(len(atoms)):
        top = np.flatnonzero(held)[np.argsort(-codes[held, a])[:TOP]]
        top = top[codes[top, a] > 0]
        if len(top) < 5:
            continue
        names, counts = np.unique(task[top], return_counts=True)
        scored += 1
        pure += int(counts.max() / len(top) >= PURE)
        shuffled_pure += int(np.unique(rng.permutation(task)[top], return_counts=True)[1].max() / len(top) >= PURE)
        precision.setdefault(str(names[counts.argmax()]), []).append(float(counts.max() / len(top)))
    found: dict[str, dict[str, Any]] = {}
    null: dict[str, dict[str, Any]] = {}
    for name in sorted(set(task.tolist())):
        for f1, of in ((found, task), (null, rng.permutation(task))):
            f1[name] = dict(zip(("atom", "f1"), best_f1(sparse, of == name, ~held), strict=True))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    verdicts = [a["verdict"] for a in metrics["atoms"]]
    return {
        "pure": pure, "null_pure": shuffled_pure, "scored": scored, "f1": found, "f1_null": null,
        "precision_top": {k: float(np.mean(v)) for k, v in precision.items()},
        "real": verdicts.count("real"), "weak": verdicts.count("weak"), "noise": verdicts.count("noise"),
        "metrics": metrics["metrics"],
    }  # fmt: skip


# Stage 4: steering


def behaviour_atoms(out: Path) -> dict[str, list[int]]:
    """For each behaviour the atom whose 20 strongest fitted documents' answers show it most, most code first; then the others of which
    80 % do. No task type is read."""
    atoms = load_atoms(out / "coarse.atoms")
    store, codes = store_of(atoms), load_codes(out / "coarse.atoms" / "codes.h5").toarray()
    split = atoms.config["holdout"]
    codes[held_out_mask(store, split["fraction"], split["seed"])] = 0
    answers = {r.id: r.target.removesuffix("\n").removesuffix("<|im_end|>") for r in store.iter_examples()}
    rows = np.asarray([int(e) for e in store.rows["example"]])
    chosen = {}
    for behaviour in BEHAVIOURS:
        shows = np.asarray([detect(behaviour, answers[e]) for e in rows])
        score = []
        for a in range(len(atoms)):
            top = np.argsort(-codes[:, a])[:TOP]
            mass = float(codes[shows, a].sum())
            score.append(
                (float(shows[top][codes[top, a] > 0].sum()), mass * mass / max(1e-9, float(codes[:, a].sum())))
            )
        order = sorted(range(len(atoms)), key=lambda a: score[a], reverse=True)
        chosen[behaviour] = [order[0], *(a for a in order[1:] if score[a][0] >= PURE * TOP)]
    return chosen


def answers_to(loaded: LoadedModel, asked: Sequence[str], batch: int = 100) -> list[str]:
    """Greedy answers of the chat model, padded to the left."""
    tokenizer = loaded.tokenizer
    texts = [
        str(tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True))
        for q in asked
    ]
    tokenizer.padding_side, before = "left", tokenizer.padding_side
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    found: list[str] = []
    for start in range(0, len(texts), batch):
        ids = tokenizer(texts[start : start + batch], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad(), in_bfloat16(loaded):
            out = loaded.model.generate(**ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=pad_id(loaded))  # type: ignore[operator]
        found += [loaded.decode(row[ids.input_ids.shape[1] :].tolist()) for row in out]
    tokenizer.padding_side = before
    return found


@contextmanager
def in_bfloat16(loaded: LoadedModel) -> Iterator[None]:
    """While open the model's parameters are bfloat16, where that is quicker; afterwards they are what they were."""
    if not has_bfloat16(loaded.device.type):
        yield
        return
    kept = {name: p.data for name, p in loaded.model.named_parameters()}
    try:
        for p in loaded.model.parameters():
            p.data = p.data.to(torch.bfloat16)
        yield
    finally:
        for name, p in loaded.model.named_parameters():
            p.data = kept[name]


def perplexity(loaded: LoadedModel, texts: Sequence[Example]) -> float:
    """exp of the mean nll a token of plain sentences."""
    sequences = [one[0] for one in tokenize(loaded, texts)]
    total = count = 0.0
    for group in by_budget(sequences, 2048):
        batch = pad(group, loaded.device)
        with torch.no_grad(), predict_at(loaded, batch.at_seq_P, batch.at_col_P):
            log_p = loaded.model(input_ids=batch.ids_LS, use_cache=False).logits.float().log_softmax(-1)
        total -= float(log_p[batch.term_at_T, batch.term_token_T].sum())
        count += len(batch.term_at_T)
    return float(np.exp(total / count))


def sentences() -> list[Example]:
    """Plain true sentences about all sorts of things, every token of which is predicted."""
    return [
        Example(prompt="", target=f"{e.prompt}{e.target}.") for e in read_examples("builtin:corrections", limit=150)
    ]


def steer(out: Path, loaded: LoadedModel, behaviour: str, chosen: Sequence[int], kept: Path) -> list[dict[str, Any]]:
    """Rates of a behaviour under steps of its atom, three ways and in the residual stream, at budgets of KL, either sign.

    Where it has several atoms, also under a step of all of them (way ``together``: of their documents).
    """
    atom = chosen[0]
    atoms = load_atoms(out / "coarse.atoms")
    meter = Meter(loaded, CALIBRATING, tokens=8, batch=48)
    plain_text, inviting, neutral = sentences(), *questions(behaviour)
    rows: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    done = {(r["way"], r["sign"], r["budget"]) for r in rows}

    def measure(way: str, sign: int, budget: float, alpha: float, kl: float) -> None:
        found = answers_to(loaded, [*inviting, *neutral])
        shown = [detect(behaviour, text) for text in found]
        rows.append({
            "behaviour": behaviour, "atom": atom, "way": way, "sign": sign, "budget": budget, "alpha": alpha, "kl": kl,
            "rate": float(np.mean(shown)), "inviting": float(np.mean(shown[: len(inviting)])),
            "neutral": float(np.mean(shown[len(inviting) :])), "perplexity": perplexity(loaded, plain_text),
            "examples": [found[i] for i in (0, 1, 60)],
        })  # fmt: skip
        write_json(kept, rows)
        print(
            behaviour,
            way,
            f"{sign:+d}",
            f"{kl:.2f} nats",
            f"rate {rows[-1]['rate']:.2f}",
            f"perplexity {rows[-1]['perplexity']:.1f}",
            flush=True,
        )

    if ("plain", 0, 0.0) not in done:
        measure("plain", 0, 0.0, 0.0, 0.0)
    for way in (*WAYS, *(["together"] if len(chosen) > 1 else []), "random"):
        budgets = BUDGETS[-1:] if way == "random" else BUDGETS
        wanted = [(sign, budget) for sign in (1, -1) for budget in budgets if (way, sign, budget) not in done]
        if not wanted:
            continue
        if way == "random":
            step = random_step(atoms, seed=atom)
        elif way == "together":
            step, _ = blend([(atom_step(loaded, atoms, a, "documents"), 1.0) for a in chosen])
        else:
            step = atom_step(loaded, atoms, atom, way)  # type: ignore[arg-type]
        for sign, budget in wanted:
            alpha, kl = calibrate_step(meter, loaded, step, budget, sign=sign)
            with applied_step(loaded, step, alpha):
                measure(way, sign, budget, alpha, kl)
    wanted = [(sign, budget) for sign in (1, -1) for budget in BUDGETS if ("activation", sign, budget) not in done]
    if wanted:
        direction = activation_direction(out, atom)
        for sign, budget in wanted:
            what = Atom(-1, direction.hook, sign * direction.direction)
            alpha = calibrate(loaded, what, list(CALIBRATING), kl=budget, tokens=8, positions="all")
            kl = float(
                Meter(loaded, CALIBRATING, tokens=8, batch=48, positions="all")(steering(what, alpha, positions="all"))
            )
            with applied(loaded, steering(what, alpha, positions="all")):
                measure("activation", sign, budget, sign * alpha, kl)
    return rows


def activation_direction(out: Path, atom: int) -> Atom:
    """The mean activation push of the same documents, weighted by the atom's codes."""
    atoms = load_atoms(out / "coarse.atoms")
    store, other = store_of(atoms), open_store(out / "mix-activations.gstore")
    codes = load_codes(out / "coarse.atoms" / "codes.h5").toarray()[:, atom]
    weight = dict(zip((int(e) for e in store.rows["example"]), codes, strict=True))
    hook = other.hooks[0]
    total = np.zeros(other.header.hook(hook).d)
    for batch in other.batches(hook, 1024, fields=("example",)):
        total -= np.asarray([weight[int(e)] for e in batch.rows["example"]]) @ batch.gradients
    return Atom(-1, hook, (total / np.linalg.norm(total)).astype(np.float32))


# Stage 5: the test of an attribution


def retraining(out: Path) -> dict[str, Any]:
    """The untuned model trained again and again on some of the documents, without an atom's and without random ones."""
    loaded, some = load_model("smollm2"), documents(400)
    path = out / "few.gstore"
    weights = WeightConfig(curvature=CurvatureConfig(dtype="auto"), sketch=0)
    harvest_weights(loaded, some, path, HarvestConfig(dtype="auto"), weights, resume=path.exists())
    if not (out / "few.atoms").exists():
        fit_store(path, out / "few.atoms", OnlineConfig(n_atoms=12, k=2), checks=False)
    atoms = load_atoms(out / "few.atoms")
    config = RetrainConfig(drop=12, draws=3, epochs=1, learning_rate=2e-4)

    def progress(stage: str, done: int, total: int) -> None:
        print(f"\r{stage} {done} of {total}", end="", flush=True)

    started = time.perf_counter()
    found = retraining_check(loaded, atoms, None, config, progress=progress)
    print()
    return asdict(found) | {"seconds": time.perf_counter() - started, "config": asdict(config)}


# All of it


def staged(out: Path, name: str, make: Callable[[], Any]) -> Any:
    """The result of a stage, made if it is not there."""
    path = out / f"{name}.json"
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--limit", type=int, help="documents, spread evenly")
    top: Path = parser.parse_args().out
    top.mkdir(parents=True, exist_ok=True)
    examples = documents(parser.parse_args().limit)
    staged(top, "tune", lambda: tune(top / "adapter", examples))
    for name in COARSE:
        out = top / name
        out.mkdir(exist_ok=True)
        loaded = load_model("smollm2", adapter=str(top / "adapter") if name == "tuned" else None)
        everything(out, loaded, examples)
    staged(top, "retraining", lambda: retraining(top))
    settings = {"rank": RANK, "atoms": ATOMS, "alpha": ALPHA, "top": TOP, "pure": PURE}
    (top / "report.md").write_text(report(top, COARSE, settings), encoding="utf-8")
    print((top / "report.md").read_text(encoding="utf-8"))


def everything(out: Path, loaded: LoadedModel, examples: Sequence[Example]) -> None:
    """All stages at one model."""
    staged(out, "gradients", lambda: gradients(out, loaded, examples))
    staged(out, "atoms", lambda: atoms_of(out))
    staged(out, "discovery", lambda: discovery(out / "mix.atoms"))
    staged(out, "discovery of few", lambda: discovery(out / "coarse.atoms"))
    for behaviour, chosen in staged(out, "behaviours", lambda: behaviour_atoms(out)).items():
        steer(out, loaded, behaviour, chosen, out / f"steer {behaviour}.json")


if __name__ == "__main__":
    main()
