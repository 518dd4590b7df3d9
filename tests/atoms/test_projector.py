"""The projector on a tiny model with planted atoms: who may see what, training, reading, ranking, describing, measuring."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import OmpCoder, leading
from gradatoms.errors import ConfigError
from gradatoms.hooking import fast_math
from gradatoms.models import LoadedModel
from gradatoms.progress import silent
from gradatoms.projector.confidence import Confidence
from gradatoms.projector.crossing import CONTROLS, cross
from gradatoms.projector.decoupling import DecouplingConfig, _Evaluation
from gradatoms.projector.describe import Describer
from gradatoms.projector.measures import matched, permuted, ranks, share
from gradatoms.projector.model import (
    ProjectorConfig,
    injected,
    inputs,
    new_projector,
    noise_like,
    placeholders,
)
from gradatoms.projector.prompt import ANSWERS, QUERY, header, token_ids
from gradatoms.projector.ranking import Ranker
from gradatoms.projector.reader import Reader
from gradatoms.projector.rows import Rows, described, make_splits, synthesize
from gradatoms.projector.train import Training, first_leads, splits_of
from gradatoms.projector.words import Words, new_words

HOOK = "blocks.1.hook_resid_post"
WORDS = "capital colour opposite number river animal metal planet fruit tree letter sport".split()
SMALL: dict[str, Any] = {
    "soft_tokens": 8,
    "hidden": 64,
    "warm_steps": 20,
    "steps": 3,
    "batch_size": 4,
    "warm_batch": 16,
}


@pytest.fixture(scope="module")
def planted() -> tuple[Atoms, Rows]:
    """12 orthogonal atoms of six concepts, 20 rows each, some with a second atom."""
    rng = np.random.default_rng(0)
    D = np.linalg.qr(rng.standard_normal((32, 32)))[0][:12].astype(np.float32)
    lead = np.repeat(np.arange(12), 20)
    second = (lead + rng.integers(1, 12, len(lead))) % 12
    x = 0.8 * D[lead] + np.where(rng.random(len(lead)) < 0.4, 0.5, 0.0)[:, None] * D[second]
    x = x + 0.05 * rng.standard_normal(x.shape)
    bias = 0.2 * rng.standard_normal(32).astype(np.float32) / np.sqrt(32)
    atoms = Atoms(D, bias, OmpCoder(D, 3), HOOK)
    pushes = (x + bias).astype(np.float32)
    pushes /= np.linalg.norm(pushes, axis=1, keepdims=True)
    codes = atoms.encode(pushes)
    rows = Rows(
        numbers=np.arange(len(lead)),
        pushes=pushes,
        codes=codes,
        lead=leading(codes),
        fitted=rng.random(len(lead)) > 0.3,
        prompts=[f"The {WORDS[a]} of {i} is" for i, a in enumerate(lead)],
        targets=[f" {letter}" for letter in rng.choice(list("abcdefgh"), len(lead))],
        concepts=[f"concept {a // 2}" for a in lead],
        labels={a: f"{WORDS[a]}: {WORDS[(a + 5) % 12]}" for a in range(12)},
    )
    return atoms, rows


def config(**changes: Any) -> ProjectorConfig:
    return ProjectorConfig(**(SMALL | changes))


# Who may see what


@pytest.mark.parametrize("seed", range(4))
def test_the_splits_keep_their_promises(planted: tuple[Atoms, Rows], seed: int) -> None:
    _, rows = planted
    s = make_splits(rows, concepts=0.2, targets=0.2, contexts=0.2, seed=seed)
    kinds, targets = rows.kinds(), np.asarray(rows.targets)
    tests = (s.seen, s.targets, s.concepts, s.calibrate)
    assert all(t.any() and not (t & rows.fitted).any() for t in tests) and not (s.train & ~rows.fitted).any()
    assert sum(t.astype(int) for t in tests).max() == 1
    assert not set(kinds[s.concepts]) & set(kinds[s.train])
    assert not set(targets[s.targets]) & set(targets[s.train])
    assert not set(kinds[s.outside]) & set(kinds[s.inside])
    assert set(kinds[s.seen]) <= set(kinds[s.train]) and set(targets[s.seen]) <= set(targets[s.train])
    assert len(s.hidden_atoms) == 2 and not np.isin(described(rows.codes)[0][s.train], s.hidden_atoms).any()
    assert np.isin(rows.lead[s.concepts], s.hidden_atoms).all() and not np.isin(rows.lead[s.seen], s.hidden_atoms).any()
    again = make_splits(rows, concepts=0.2, targets=0.2, contexts=0.2, seed=seed)
    assert all((getattr(again, k) == v).all() for k, v in vars(s).items())


def test_without_concepts_atoms_take_their_place(planted: tuple[Atoms, Rows]) -> None:
    rows = replace(planted[1], concepts=None)
    s = make_splits(rows, concepts=0.2, targets=0.0, contexts=0.0, seed=0)
    assert len(s.hidden_atoms) == 2 and not s.targets.any() and not s.outside.any()
    assert set(rows.lead[s.concepts]) == set(s.hidden_atoms.tolist())


def test_nothing_to_train_on_is_said(planted: tuple[Atoms, Rows]) -> None:
    rows = planted[1]
    with pytest.raises(ConfigError, match="expected rows to train on"):
        make_splits(replace(rows, fitted=np.zeros(len(rows), bool)), concepts=0.2, targets=0.0, contexts=0.0, seed=0)


def test_a_description_names_what_weighs_enough(planted: tuple[Atoms, Rows]) -> None:
    codes = planted[1].codes[:3].tolil()
    codes[:] = 0
    codes[0, [2, 5, 7]] = [0.2, 0.9, 0.5]
    codes[1, [2, 5]] = [0.26, 0.9]
    atoms, weights = described(codes.tocsr())
    assert atoms.tolist() == [[5, 7], [5, -1], [-1, -1]]
    np.testing.assert_allclose(weights, [[0.9, 0.5], [0.9, 0], [0, 0]], atol=1e-6)


def test_synthetic_rows_are_pushes_with_their_own_codes(planted: tuple[Atoms, Rows]) -> None:
    atoms, rows = planted
    made, codes = synthesize(atoms, rows.pushes, rows.codes, 200, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(codes.toarray(), atoms.encode(made).toarray())
    two = [(described(c)[0] >= 0).all(axis=1).mean() for c in (codes, rows.codes)]
    assert two[0] > two[1] and len(np.unique(leading(codes))) == 12


# The model before the model


def some_words(tiny: LoadedModel, atoms: Atoms) -> Words:
    """Three units; labels of 2, 3 and 1 tokens, then a weight of two."""
    embeddings = torch.nn.functional.normalize(tiny.embeddings.float(), dim=1)
    table = embeddings[torch.arange(10, 42).reshape(4, 8)].clone()
    numbers = embeddings[torch.arange(50, 70).reshape(10, 2)].clone()
    keys = torch.from_numpy(np.asarray(atoms.W_dec[:3], dtype=np.float32))
    words = Words(embeddings[10:70], keys, table, numbers, torch.tensor([2, 3, 1]), torch.arange(3))
    with torch.no_grad():
        words.bias.copy_(torch.tensor([0.02, -0.01, 0.03]))
        words.quiet.copy_(torch.tensor([[0.2, 0.0], [0.1, 0.3]]))
    return words


def test_words_says_what_each_term_hits(tiny: LoadedModel, planted: tuple[Atoms, Rows]) -> None:
    """The equations, row by row; an atom says its own tokens, then those of its weight, and the next term the rest."""
    atoms, _ = planted
    words = some_words(tiny, atoms)
    d = words.keys.detach().numpy()
    pushes = np.stack([0.7 * d[0] + 0.35 * d[2], 0.5 * d[1], 0 * d[0]]).astype(np.float32)
    with torch.no_grad():
        found = words(torch.from_numpy(pushes), mixed=False).numpy()
        mixed = words(torch.from_numpy(pushes), mixed=True)
    table, numbers, bias = (p.detach().numpy() for p in (words.table, words.numbers, words.bias))
    for row, q in enumerate(pushes):
        weight = 0.0
        for term, (a, c) in enumerate(((0.2, 0.0), (0.1, 0.3))):
            logits = 40 * np.append(d @ q + bias, a + c * weight)
            h = np.exp(logits - logits.max())
            h /= h.sum()
            sharp = h**4 / (h**4).sum()
            weight = float((sharp[:3] * (d @ q)).sum())
            at = 10 * min(max(weight, 0.1), 1.0)
            told = sum(max(0.0, 1 - abs(at - m)) * numbers[m - 1] for m in range(1, 11))
            v = np.einsum("j,jkm->km", h, table)
            for unit, place in enumerate((2, 3, 1)):
                v[place : place + 2] += h[unit] * told
            np.testing.assert_allclose(found[row, term], v / np.linalg.norm(v, axis=1, keepdims=True), atol=1e-4)
            q = q - (sharp[:3] * (d @ q)) @ d
    said = (mixed @ words.vocabulary.T).argmax(-1) + 10
    assert said[0, 0, :2].tolist() == [10, 11] and said[0, 1, 0] == 26  # units 0, then 2
    assert said[1, 0, :3].tolist() == [18, 19, 20] and said[1, 1].tolist() == list(range(34, 42))
    assert said[2, 0].tolist() == list(range(34, 42))  # nothing is hit


def test_too_few_soft_tokens_are_refused(tiny: LoadedModel, planted: tuple[Atoms, Rows]) -> None:
    with pytest.raises(ConfigError, match="soft tokens for a label"):
        training(tiny, planted, soft_tokens=2)


def test_pushes_enter_as_the_equations_say(tiny: LoadedModel, planted: tuple[Atoms, Rows]) -> None:
    atoms, rows = planted
    x = inputs(atoms, config(), rows.pushes[:3])
    np.testing.assert_allclose(x, np.sqrt(32) * (rows.pushes[:3] - atoms.b_dec), atol=1e-6)
    np.testing.assert_allclose(
        inputs(atoms, config(arm="code"), rows.pushes[:3]), 4 * rows.codes[:3].toarray(), atol=1e-5
    )
    norm = float(tiny.embeddings.norm(dim=1).mean())
    for arm in ("none", "affine", "lowrank", "mlp", "words", "code"):
        settings = config(arm=arm)
        projector = new_projector(tiny, atoms, settings)
        if arm == "words":
            projector.words = some_words(tiny, atoms)
        u = projector(inputs(atoms, settings, rows.pushes[:3]))
        assert u.shape == (3, 2, 8, 32)
        torch.testing.assert_close(u.norm(dim=-1), torch.ones(3, 2, 8))
        if arm in ("none", "affine"):
            torch.testing.assert_close(u[:, 1, 3], x / x.norm(dim=1, keepdim=True))
        with injected(tiny, projector, u[:, 0]) as soft:
            torch.testing.assert_close(soft, norm * u[:, 0])
    with injected(tiny, projector, torch.zeros(3, 8, 32)) as soft:
        torch.testing.assert_close(soft, placeholders(tiny, projector, 3))


def test_after_a_block_a_step_is_added_in_proportion(tiny: LoadedModel, planted: tuple[Atoms, Rows]) -> None:
    atoms, rows = planted
    settings = config(block=0, arm="mlp")
    projector = new_projector(tiny, atoms, settings)
    u = projector(inputs(atoms, settings, rows.pushes[:2]))[:, 0].detach()
    seen: list[torch.Tensor] = []
    after = tiny.hook("blocks.1.hook_resid_pre").block
    handle = after.register_forward_pre_hook(
        lambda _m, args, kw: seen.append((args or (kw["hidden_states"],))[0]), with_kwargs=True
    )
    for moved in (torch.zeros_like(u), u):
        with torch.no_grad(), injected(tiny, projector, moved) as soft:
            torch.testing.assert_close(soft, placeholders(tiny, projector, 2))
            tiny.model(inputs_embeds=torch.cat([soft, tiny.embeddings[torch.tensor([[5, 6]] * 2)]], dim=1))
    handle.remove()
    plain, stepped = seen
    torch.testing.assert_close(stepped[:, :8], plain[:, :8] + plain[:, :8].norm(dim=-1, keepdim=True) * u)
    torch.testing.assert_close(stepped[:, 8:], plain[:, 8:])


def test_noise_has_the_norm_of_the_push(planted: tuple[Atoms, Rows]) -> None:
    atoms, rows = planted
    made = noise_like(atoms, rows.pushes, np.random.default_rng(0))
    sizes = [np.linalg.norm(atoms.center(p), axis=1) for p in (made, rows.pushes)]
    np.testing.assert_allclose(*sizes, rtol=1e-4)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"soft_tokens": 0}, "soft_tokens of at least 1"),
        ({"noise": 0.7, "clean": 0.4}, "noise and clean below 1"),
        ({"own": 1.0}, "own from 0 to below 1"),
        ({"lr": float("nan")}, "lr above 0"),
        ({"steps": -1}, "steps of at least 0"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**changes)


def test_a_block_that_is_not_there_is_refused(tiny: LoadedModel, planted: tuple[Atoms, Rows]) -> None:
    projector = new_projector(tiny, planted[0], config(block=99))
    with pytest.raises(ConfigError, match="expected block from 0 to"), injected(tiny, projector, torch.ones(1, 8, 32)):
        pass


# Training


def training(tiny: LoadedModel, planted: tuple[Atoms, Rows], **changes: Any) -> Training:
    atoms, rows = planted
    settings = config(**changes)
    return Training(tiny, atoms, rows, splits_of(rows, settings), settings)


@pytest.mark.parametrize(
    "changes", [{}, {"arm": "mlp"}, {"arm": "affine"}, {"arm": "lowrank"}, {"arm": "code"}, {"block": 0}]
)
def test_every_arm_learns(
    tiny: LoadedModel, planted: tuple[Atoms, Rows], tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = training(tiny, planted, warm_steps=60, steps=12, lr=3e-3, **changes)
    run(tmp_path)
    warm = run.losses[:60]
    assert np.mean(warm[-10:]) < np.mean(warm[:5]) and len(run.losses) == 72
    optimizer = run._optimizer(60)
    again = [run._read(0, optimizer) for _ in range(20)]
    assert np.mean(again[-3:]) < np.mean(again[:3])
    assert all(not p.requires_grad for p in tiny.model.parameters())


def test_the_untrained_arm_stays_untrained(tiny: LoadedModel, planted: tuple[Atoms, Rows], tmp_path: Path) -> None:
    run = training(tiny, planted, arm="none")
    report = run(tmp_path)
    assert run.losses == [] and not list(run.projector.parameters()) and np.isnan(report.last_loss)


def test_nothing_hidden_is_trained_on(tiny: LoadedModel, planted: tuple[Atoms, Rows]) -> None:
    rows = planted[1]
    run = training(tiny, planted)
    splits = splits_of(rows, run.config)
    assert run.real == splits.train.sum() and len(run.pushes) > 3 * run.real
    assert not np.isin(run.terms, splits.hidden_atoms).any()
    assert not set(run.contexts) & {rows.prompts[i] for i in np.flatnonzero(splits.outside | ~rows.fitted)}


@pytest.mark.parametrize("stage, at", [("projector warm start", 110), ("projector", 12)])
def test_an_interrupted_training_goes_on(
    tiny: LoadedModel, planted: tuple[Atoms, Rows], tmp_path: Path, stage: str, at: int
) -> None:
    changes: dict[str, Any] = {"warm_steps": 120, "steps": 14}
    whole = training(tiny, planted, **changes)
    whole(tmp_path / "whole")

    def stop(name: str, done: int, total: int) -> None:
        if name == stage and done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(tiny, planted, **changes)(tmp_path / "part", stop)
    again = training(tiny, planted, **changes)
    seen: list[tuple[str, int]] = []
    again(tmp_path / "part", lambda name, done, total: seen.append((name, done)))
    assert seen[0] == (stage, at // (100 if "warm" in stage else 10) * (100 if "warm" in stage else 10) + 1)
    assert again.losses == whole.losses
    for name, value in whole.projector.state_dict().items():
        torch.testing.assert_close(again.projector.state_dict()[name], value, rtol=0, atol=0)


def test_a_checkpoint_of_other_settings_is_not_taken_up(
    tiny: LoadedModel, planted: tuple[Atoms, Rows], tmp_path: Path
) -> None:
    training(tiny, planted, warm_steps=120, steps=10)(tmp_path)
    assert (tmp_path / "checkpoint.safetensors").exists()
    seen: list[tuple[str, int]] = []
    training(tiny, planted, warm_steps=120, steps=10, seed=1)(tmp_path, lambda n, done, t: seen.append((n, done)))
    assert seen[0] == ("projector warm start", 1)


def test_the_lora_is_on_only_while_reading(tiny: LoadedModel, planted: tuple[Atoms, Rows], tmp_path: Path) -> None:
    ids = torch.tensor([[5, 6, 7]])
    before = tiny.model(input_ids=ids).logits.detach().clone()
    names = [name for name, _ in tiny.model.named_modules()]
    run = training(tiny, planted, lora_rank=2, warm_steps=2, steps=4, lora_lr=0.1)
    try:
        run(tmp_path)
        torch.testing.assert_close(tiny.model(input_ids=ids).logits, before)
        with run.reader.reading():
            heard = tiny.model(input_ids=ids).logits
        with fast_math(tiny):
            assert not torch.equal(tiny.model(input_ids=ids).logits, heard)
        kept = {name: value.clone() for name, value in run.lora().items()}
        assert kept and any(value.abs().sum() > 0 for name, value in kept.items() if "lora_B" in name)
    finally:
        run.reader.close()
    assert [name for name, _ in tiny.model.named_modules()] == names
    again = Reader(tiny, run.projector, kept)
    try:
        assert all(torch.equal(p, kept[name]) for name, p in again.lora_parameters().items())
    finally:
        again.close()


def test_which_of_two_atoms_leads() -> None:
    found = first_leads(np.asarray([[0.5, 0.5], [0.9, 0.3], [0.4, 0.0]], np.float32))
    np.testing.assert_allclose(found, [0.5, 1, 1], atol=1e-4)


# Describing and ranking


@pytest.fixture(scope="module")
def trained(tiny: LoadedModel, planted: tuple[Atoms, Rows], tmp_path_factory: pytest.TempPathFactory) -> Describer:
    run = training(tiny, planted, warm_steps=120, steps=20, lr=3e-3)
    run(tmp_path_factory.mktemp("projector"))
    return Describer(run.reader, planted[0], planted[1].labels, Confidence())


@pytest.mark.parametrize("phrasing", ["name", "both"])
def test_a_description_does_not_depend_on_the_batch(
    trained: Describer, planted: tuple[Atoms, Rows], phrasing: Any
) -> None:
    rows = planted[1]
    pushes, contexts = rows.pushes[:9], [rows.prompts[-1 - i] for i in range(9)]
    whole = trained.say(pushes, contexts, phrasing=phrasing)
    for size in (1, 4):
        parts = trained.say(pushes, contexts, phrasing=phrasing, batch=size)
        assert [p.text for p in parts] == [w.text for w in whole]
        np.testing.assert_allclose([p.margin for p in parts], [w.margin for w in whole], atol=2e-2)
    for said in whole:
        assert bool(said.terms) == (said.margin >= 0) and len({t.atom for t in said.terms}) == len(said.terms)
        assert said.text == "no clear pressure" or said.terms


def test_atoms_that_training_left_out_are_named_from_their_labels(
    trained: Describer, planted: tuple[Atoms, Rows]
) -> None:
    """Sealed, a push of a held-out concept gives another label; told the labels, its own, and the others stay as they were."""
    atoms, rows = planted
    projector = trained.reader.projector
    sealed = projector.words
    assert sealed is not None
    left_out = sorted(set(rows.labels) - set(sealed.units.tolist()))
    assert left_out and set(left_out) == set(splits_of(rows, projector.config).hidden_atoms.tolist())
    pushes = np.asarray(0.9 * atoms.W_dec + atoms.b_dec, dtype=np.float32)
    pushes /= np.linalg.norm(pushes, axis=1, keepdims=True)

    def says() -> torch.Tensor:
        with torch.no_grad():
            return projector(inputs(atoms, projector.config, pushes))[:, 0]

    before = says()
    try:
        trained.name_all()
        after, told = says(), projector.words
        with pytest.raises(ConfigError, match="sealed=True"):
            _Evaluation(trained, rows, DecouplingConfig(rows=4, contexts=3, controls=2), silent)
    finally:
        projector.words = sealed
    assert told is not None and sorted(told.units.tolist()) == sorted(rows.labels)
    asked = new_words(trained.loaded, atoms, rows.labels, left_out, projector.config.soft_tokens)
    for i, atom in enumerate(left_out):
        tokens = len(token_ids(trained.loaded, f" {rows.labels[atom]}"))
        wanted = asked.table.detach()[i, : min(tokens, 8 - asked.numbers.shape[1])]
        assert float((after[atom, : len(wanted)] * wanted).sum(-1).mean()) > 0.9
        assert float((before[atom, : len(wanted)] * wanted).sum(-1).mean()) < 0.9
    stayed = [a for a in rows.labels if a not in left_out]
    torch.testing.assert_close(after[stayed], before[stayed], atol=0.02, rtol=0)


def test_ranking_is_the_closed_set_probability(trained: Describer, planted: tuple[Atoms, Rows]) -> None:
    """Against one whole forward pass a label: every token renormalised over what still leads to a label."""
    tiny, rows = trained.loaded, planted[1]
    ranker = Ranker(trained)
    context = rows.prompts[3]
    found = ranker.plain(context)
    np.testing.assert_allclose(np.exp(found).sum(), 1, atol=1e-4)
    labels = [[*token_ids(tiny, f" {rows.labels[a]}"), *token_ids(tiny, ".")] for a in ranker.atoms]
    before = tiny.tokenizer(header("name", 8)).input_ids + token_ids(tiny, context + QUERY)
    before += token_ids(tiny, " ?")[-1:] * 8 + token_ids(tiny, ANSWERS["name"])
    for at, ids in enumerate(labels):
        with torch.no_grad():
            logits = tiny.model(input_ids=torch.tensor([before + ids])).logits[0, len(before) - 1 :]
        total = 0.0
        for k, token in enumerate(ids):
            ways = sorted({other[k] for other in labels if other[:k] == ids[:k] and len(other) > k})
            total += float(logits[k][ways].log_softmax(-1)[ways.index(token)])
        assert found[at] == pytest.approx(total, abs=0.1)  # bfloat16 where that is native


def test_scores_are_less_what_the_context_makes_likely(trained: Describer, planted: tuple[Atoms, Rows]) -> None:
    rows, ranker = planted[1], Ranker(trained)
    contexts = [rows.prompts[0], rows.prompts[100], rows.prompts[0]]
    scores = ranker.scores(rows.pushes[:3], contexts)
    plain = 0.5 * np.exp(ranker.without(contexts)) + 0.5 / 12
    p = np.exp(scores) * plain
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=0.01)
    assert scores.shape == (3, 12) and (p > 0.999 * 0.5 / 12).all()


def test_controls_are_what_they_say(planted: tuple[Atoms, Rows]) -> None:
    atoms, rows = planted
    splits = splits_of(rows, config())
    chosen = np.flatnonzero(splits.seen)[:20]
    made = {name: make(atoms, rows, splits, chosen, np.random.default_rng(0)) for name, make in CONTROLS.items()}
    assert made["no vector"] is None
    np.testing.assert_allclose(atoms.center(made["zero"]), 0, atol=1e-6)
    np.testing.assert_allclose(atoms.center(made["sign flip"]), -atoms.center(rows.pushes[chosen]), atol=1e-5)
    assert (leading(atoms.encode(made["deranged"])) != rows.lead[chosen]).all()
    assert len(np.unique(made["mean gradient"], axis=0)) == 1


def test_every_gradient_meets_another_kind_of_context(planted: tuple[Atoms, Rows]) -> None:
    rows = planted[1]
    splits = splits_of(rows, config())
    found = cross(rows, splits, most=30, contexts=4, rng=np.random.default_rng(0))
    kinds = rows.kinds()
    for name, crossing in found.items():
        assert 0 < len(crossing.rows) <= 30 and (kinds[crossing.rows] != kinds[crossing.contexts]).all()
        assert len(set(crossing.contexts.tolist())) <= 4 and not rows.fitted[crossing.contexts].any()
        wanted = splits.seen if name in ("contexts", "pairs") else getattr(splits, name)
        assert wanted[crossing.rows].all()
    assert splits.outside[found["contexts"].contexts].all() and not splits.outside[found["seen"].contexts].any()
    assert (described(rows.codes[found["pairs"].rows])[1] > 0.3).all()
    pairs = {(kinds[a], kinds[b]) for a, b in zip(found["seen"].rows, found["seen"].contexts, strict=True)}
    assert len(pairs) > len(set(kinds[found["seen"].rows]))


def test_the_evaluation_measures_everything(trained: Describer, planted: tuple[Atoms, Rows]) -> None:
    seen: list[tuple[int, int]] = []
    evaluation = _Evaluation(
        trained,
        planted[1],
        DecouplingConfig(rows=12, contexts=3, controls=6),
        lambda _n, done, total: seen.append((done, total)),
    )
    report = evaluation.report()
    assert set(report["splits"]) == {"seen", "targets", "contexts", "concepts"} and set(report["controls"]) == set(
        CONTROLS
    )
    assert {"nearest atom", "linear probe", "nearest centroid", "logit lens", "lookahead"} <= set(report["baselines"])
    names = "recall_at_1 mrr two_afc exact free concept_accuracy".split()
    assert {f"decoupled_{name}" for name in names} <= set(report["metrics"])
    more = (
        "context_capture noise_false_positives term_precision term_recall weight_correlation both_named roundtrip_terms"
    )
    assert set(more.split()) <= set(report["metrics"])
    for metric in report["metrics"].values():
        assert {"value", "null", "unit", "better", "n", "note"} <= set(metric)
    assert [d["lambda"] for d in report["dose"]] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert seen[-1][0] == seen[-1][1]
    json.dumps(report, allow_nan=False)


# Numbers


def test_a_share_and_its_interval() -> None:
    kinds = np.repeat(list("abcd"), 25)
    right = np.repeat([1.0, 1.0, 0.0, 0.0], 25)
    found = share(right, kinds)
    assert found["value"] == 0.5 and found["interval"] == [0.0, 1.0] and found["n"] == 100
    narrow = share(right, np.arange(100).astype(str))["interval"]
    assert 0.38 < narrow[0] < 0.45 and 0.55 < narrow[1] < 0.62
    assert share(right[:0], kinds[:0])["value"] is None and share(right[:5], kinds[:5])["interval"] is None


def test_a_match_is_held_against_permuted_rows() -> None:
    truth = np.arange(60) % 6
    kinds = truth.astype(str)
    exact, none = matched(truth, truth, kinds), matched(np.full(60, 3), truth, kinds)
    assert exact["value"] == 1 and exact["p"] < 0.01 and exact["null"] == pytest.approx(1 / 6, abs=0.03)
    assert none["value"] == pytest.approx(1 / 6) and none["p"] == 1
    assert permuted(lambda o: 0.0, None, 3) == {"null": None, "p": None}


def test_ranks_share_ties() -> None:
    scores = np.asarray([[0.1, 0.9, 0.5], [0.2, 0.2, 0.2]], np.float32)
    np.testing.assert_allclose(ranks(scores, np.asarray([2, 0])), [2, 2])


def test_confidence_is_the_share_that_is_right() -> None:
    rng = np.random.default_rng(0)
    log_prob, margin = -3 * rng.random(2000), rng.normal(3, 4, 2000)
    chance = 1 / (1 + np.exp(-(1 + log_prob + 0.3 * margin)))
    right = rng.random(2000) < chance
    fitted = Confidence.fit(log_prob[:1000], margin[:1000], right[:1000])
    said = np.asarray([fitted(float(a), float(b)) for a, b in zip(log_prob[1000:], margin[1000:], strict=True)])
    assert np.abs(said - chance[1000:]).mean() < 0.06
    few = Confidence.fit(log_prob[:4], margin[:4], np.asarray([True, True, True, False]))
    assert few(-1.0, 3.0) == few(-2.0, 9.0) == pytest.approx(4 / 6)
