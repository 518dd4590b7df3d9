"""The prefix cache, the virtual step, and constrained generation, against whole forwards and transformers' own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gradatoms import injection
from gradatoms.errors import ConfigError
from gradatoms.examples import Example
from gradatoms.gradients.batches import batched
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.sequences import tokenize
from gradatoms.hooking import edit_output
from gradatoms.lookahead import Shift, logit_lens, lookahead, stepped
from gradatoms.models import LoadedModel
from gradatoms.prefix import next_logits, read_tail, run_prefix, run_tail

HOOK = "blocks.1.hook_resid_post"
TEXTS = ("The capital of France is", "The capital of Japan is", "hot", "x", "Two plus two is four, and three")


def ids_of(loaded: LoadedModel, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def directions(n: int, d: int) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def whole(
    loaded: LoadedModel, ids: Sequence[int], direction: np.ndarray | None = None, alpha: float = 0.0, at: int = -1
) -> torch.Tensor:
    """Logits (S, V) of one forward over all of ``ids``, with a step at one position."""

    def step(h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        if direction is not None:
            h[0, at] += alpha * h[0, at].norm() * torch.from_numpy(direction)
        return h

    with torch.no_grad(), edit_output(loaded.hook(HOOK).module, step):
        return loaded.model(input_ids=torch.tensor([list(ids)])).logits[0].float()


# The prefix cache


@pytest.mark.parametrize("with_header", [False, True])
def test_padded_prefixes_with_a_tail_equal_whole_forwards(architecture: LoadedModel, with_header: bool) -> None:
    contexts, header = ids_of(architecture), ids_of(architecture, ["A header: "])[0]
    tails = ids_of(architecture, [" Par"])[0]
    assert len({len(c) for c in contexts}) > 2
    after = run_prefix(architecture, [header]) if with_header else None
    prefix = run_prefix(architecture, contexts, after=after)
    rows = torch.tensor([4, 0, 2, 1, 3, 0])
    at = (torch.arange(6).repeat(len(tails)), torch.arange(len(tails)).repeat_interleave(6))
    for inputs in (
        {"ids": torch.tensor([tails] * 6)},
        {"embeds": architecture.model.get_input_embeddings()(torch.tensor([tails] * 6))},
    ):
        with torch.no_grad():
            found = run_tail(architecture, prefix, rows, **inputs, at=at).reshape(len(tails), 6, -1)
        for r, row in enumerate(rows.tolist()):
            full = [*(header if with_header else []), *contexts[row], *tails]
            torch.testing.assert_close(found[:, r], whole(architecture, full)[-len(tails) :], atol=1e-4, rtol=1e-4)


def test_empty_prefixes_are_nothing_before_the_tail(tiny: LoadedModel) -> None:
    (header,), (tail,) = ids_of(tiny, ["A header: "]), ids_of(tiny, ["The capital"])
    at = (torch.tensor([0, 1]), torch.tensor([len(tail) - 1] * 2))
    with torch.no_grad():
        alone = run_tail(tiny, run_prefix(tiny, [[], []]), torch.tensor([0, 1]), ids=torch.tensor([tail] * 2), at=at)
        after = run_prefix(tiny, [[], []], after=run_prefix(tiny, [header]))
        headed = run_tail(tiny, after, torch.tensor([0, 1]), ids=torch.tensor([tail] * 2), at=at)
    torch.testing.assert_close(alone, whole(tiny, tail)[-1].expand(2, -1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(headed, whole(tiny, [*header, *tail])[-1].expand(2, -1), atol=1e-4, rtol=1e-4)


def test_a_tail_leaves_its_prefix_as_it_was(tiny: LoadedModel) -> None:
    prefix = run_prefix(tiny, ids_of(tiny))
    keys = [layer.keys.clone() for layer in prefix.cache.layers]
    tail, at = torch.tensor([[5, 6]] * 3), (torch.arange(3), torch.tensor([1, 1, 1]))
    with torch.no_grad():
        first = run_tail(tiny, prefix, torch.tensor([0, 0, 1]), ids=tail, at=at)
        second = run_tail(tiny, prefix, torch.tensor([0, 0, 1]), ids=tail, at=at)
    assert torch.equal(first, second)
    assert all(torch.equal(layer.keys, k) for layer, k in zip(prefix.cache.layers, keys, strict=True))


# The lookahead


def test_the_lookahead_equals_whole_forwards(architecture: LoadedModel) -> None:
    contexts, v = ids_of(architecture), directions(3, 32)
    pairs = [(0, 0), (0, 2), (0, 3), (1, 1), (1, 0), (1, 4)]
    found = lookahead(architecture, architecture.hook(HOOK), v, contexts, pairs, alpha=0.3)
    assert found.contexts.tolist() == [3, 3, 0]
    for k in (0, 1):
        plain = torch.stack([whole(architecture, contexts[c])[-1].log_softmax(-1) for d, c in pairs if d == k])
        moved = torch.stack(
            [whole(architecture, contexts[c], v[k], 0.3)[-1].log_softmax(-1) for d, c in pairs if d == k]
        )
        kl = (plain.exp() * (plain - moved)).sum(-1).mean()
        np.testing.assert_allclose(found.delta_p[k], (moved.exp() - plain.exp()).mean(0).numpy(), atol=1e-4)
        np.testing.assert_allclose(found.log_ratio[k], (moved - plain).mean(0).numpy(), atol=1e-3)
        assert found.kl[k] == pytest.approx(float(kl), abs=1e-4) and kl > 1e-3
        assert found.delta_p[k].sum() == pytest.approx(0, abs=1e-5)
    assert not found.delta_p[2].any() and found.kl[2] == 0


def test_no_strength_no_shift(tiny: LoadedModel) -> None:
    found = lookahead(tiny, tiny.hook(HOOK), directions(1, 32), ids_of(tiny), [(0, 0), (0, 1)], alpha=0.0)
    np.testing.assert_allclose(found.delta_p, 0, atol=1e-6)
    assert found.kl[0] == pytest.approx(0, abs=1e-6)


def test_progress_ends_at_the_last_pair(tiny: LoadedModel) -> None:
    calls: list[tuple[int, int]] = []
    pairs = [(k, c) for k in range(40) for c in range(5)]
    lookahead(
        tiny, tiny.hook(HOOK), directions(40, 32), ids_of(tiny), pairs, alpha=0.1,
        progress=lambda _s, done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls[-1] == (200, 200)


def test_a_push_promotes_its_target_in_smollm2(smollm2: LoadedModel) -> None:
    """The target is one that the model does not expect, so only the push can bring it up."""
    hook = smollm2.hook(smollm2.default_hook())
    example = Example(prompt="The capital of Japan is", target=" London")
    ((sequence,),) = tokenize(smollm2, [example])
    (batch,) = batched([sequence], batch_tokens=64, device=smollm2.device)
    g = ResidualGradients(smollm2, [hook])(batch).gradients[hook.name]
    push = -g / np.linalg.norm(g, axis=1, keepdims=True)
    context, target = sequence.ids[: sequence.rows[0] + 1], sequence.terms[0][1]
    shift = lookahead(smollm2, hook, np.concatenate([push, -push]), [context], [(0, 0), (1, 0)], alpha=0.1)
    assert target in np.argsort(-shift.delta_p[0])[:20]
    assert shift.log_ratio[0, target] > 1 and shift.log_ratio[1, target] < -1


@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
def test_each_direction_has_its_strength_at_each_hook(architecture: LoadedModel, kind: str) -> None:
    contexts, v = ids_of(architecture), directions(3, 32)
    alphas = np.asarray([0.3, -0.2, 0.05])
    pairs = [(k, c) for k in range(3) for c in range(len(contexts))]
    hook = architecture.hook(f"blocks.2.hook_{kind}")
    found = lookahead(architecture, hook, v, contexts, pairs, alpha=alphas)
    for k, alpha in enumerate(alphas):
        alone = lookahead(
            architecture, hook, v[k : k + 1], contexts, [(0, c) for _, c in pairs[:5]], alpha=float(alpha)
        )
        np.testing.assert_allclose(found.log_ratio[k], alone.log_ratio[0], atol=1e-4)
    plain = torch.stack([whole(architecture, c)[-1].softmax(-1) for c in contexts])
    np.testing.assert_allclose(found.p, plain.mean(0).numpy()[None].repeat(3, 0), atol=1e-5)
    opposite = lookahead(architecture, hook, -v, contexts, pairs, alpha=-alphas)
    np.testing.assert_allclose(found.delta_p, opposite.delta_p, atol=1e-6)


def test_the_change_of_entropy_equals_whole_forwards(architecture: LoadedModel) -> None:
    contexts, v = ids_of(architecture), directions(2, 32)
    pairs = [(0, 0), (0, 2), (1, 1), (1, 3), (1, 4)]
    found = lookahead(architecture, architecture.hook(HOOK), v, contexts, pairs, alpha=np.asarray([0.4, -0.6]))

    def entropy(context: list[int], direction: np.ndarray | None = None, alpha: float = 0.0) -> float:
        log_p = whole(architecture, context, direction, alpha)[-1].log_softmax(-1)
        return -float((log_p.exp() * log_p).sum())

    for k, alpha in enumerate((0.4, -0.6)):
        change = [entropy(contexts[c], v[k], alpha) - entropy(contexts[c]) for d, c in pairs if d == k]
        assert found.entropy[k] == pytest.approx(np.mean(change), abs=1e-4)
        assert abs(found.entropy[k]) > 1e-3


def test_blocks_below_the_hook_are_run_once_a_context(
    architecture: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they give is the same for every injection; running them again changes nothing."""
    contexts, v = ids_of(architecture), directions(40, 32)
    pairs = [(k, c) for k in range(40) for c in range(5)]
    tokens = []
    attention = architecture.hook("blocks.0.hook_attn_out").module
    handle = attention.register_forward_hook(lambda _m, _args, out: tokens.append(out[0].shape[0] * out[0].shape[1]))
    try:
        found = lookahead(architecture, architecture.hook(HOOK), v, contexts, pairs, alpha=0.3)
    finally:
        handle.remove()
    assert sum(tokens) <= 2 * sum(len(c) for c in contexts)
    monkeypatch.setattr(injection, "_skips", lambda *_: False)
    plain = lookahead(architecture, architecture.hook(HOOK), v, contexts, pairs, alpha=0.3)
    np.testing.assert_allclose(found.log_ratio, plain.log_ratio, atol=1e-5)


@pytest.mark.parametrize("breaks", [True, False])
def test_blocks_that_give_more_than_their_output_are_run(tiny: LoadedModel, breaks: bool) -> None:
    """A later block reads what an earlier one left behind; without it, it breaks or gives something else."""
    first, third = tiny.hook("blocks.0.hook_mlp_out").module, tiny.hook("blocks.2.hook_resid_post").module
    left: list[torch.Tensor] = []

    def take(_module: torch.nn.Module, _args: object, out: torch.Tensor) -> torch.Tensor:
        return out + 3 * left.pop() if left or breaks else out

    handles = [
        first.register_forward_hook(lambda _m, _args, out: left.append(out)),
        third.register_forward_hook(take),
    ]
    try:
        hook, v, contexts = tiny.hook(HOOK), directions(2, 32), ids_of(tiny)[:2]
        (group,) = injection.grouped(tiny, hook, contexts, [(0, 0), (1, 1)])
        assert group.below is None
        found = lookahead(tiny, hook, v, contexts, [(0, 0), (1, 1)], alpha=0.3)
        for k in (0, 1):
            moved, plain = whole(tiny, contexts[k], v[k], 0.3)[-1], whole(tiny, contexts[k])[-1]
            expected = moved.log_softmax(-1) - plain.log_softmax(-1)
            np.testing.assert_allclose(found.log_ratio[k], expected.numpy(), atol=1e-4)
    finally:
        for handle in handles:
            handle.remove()


def test_an_injection_leaves_the_model_as_it_was(tiny: LoadedModel) -> None:
    hook = tiny.hook(HOOK)
    before = [vars(site.block).get("forward") for site in tiny.hooks.values()]
    (group,) = injection.grouped(tiny, hook, ids_of(tiny)[:1], [(0, 0)])
    assert group.below is not None

    def fail(_h: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        injection.inject_with(tiny, hook, group, torch.tensor([0]), fail)
    assert [vars(site.block).get("forward") for site in tiny.hooks.values()] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.model.modules())


def test_no_forward_is_wider_than_the_bound(tiny: LoadedModel) -> None:
    """Memory does not grow with the number of directions, apart from what is returned."""
    widths: list[int] = []
    head = tiny.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _args, out: widths.append(len(out)))
    try:
        lookahead(tiny, tiny.hook(HOOK), directions(300, 32), ids_of(tiny), [(k, k % 5) for k in range(300)], alpha=0.1)
        lookahead(tiny, tiny.hook(HOOK), directions(300, 32), ids_of(tiny), [(k, 0) for k in range(300)], alpha=0.1)
    finally:
        handle.remove()
    assert max(widths) == injection.ROWS


def test_wrong_contexts_and_strengths_are_refused(tiny: LoadedModel) -> None:
    hook, v = tiny.hook(HOOK), directions(2, 32)
    with pytest.raises(ConfigError, match="empty"):
        lookahead(tiny, hook, v, [[1], []], [(0, 0), (1, 1)], alpha=0.1)
    with pytest.raises(ConfigError, match="each of 2 directions, got 3"):
        injection.per_direction(np.ones(3), 2, tiny.device)


# What moves most


def test_rankings_equal_a_sort(tiny: LoadedModel) -> None:
    pairs = [(k, c) for k in range(3) for c in range(5)]
    shift = lookahead(tiny, tiny.hook(HOOK), directions(3, 32), ids_of(tiny), pairs, alpha=0.4)
    floor, n = 3e-3, 12
    top = shift.top(n, floor=floor)
    for k in range(3):
        usual = np.flatnonzero(np.maximum(shift.p[k], shift.p[k] + shift.delta_p[k]) >= floor)
        assert n < len(usual) < 320
        for ranking, score, among in (
            (top.promoted, -shift.delta_p[k], np.arange(320)),
            (top.demoted, shift.delta_p[k], np.arange(320)),
            (top.promoted_ratio, -shift.log_ratio[k], usual),
            (top.demoted_ratio, shift.log_ratio[k], usual),
        ):
            expected = among[np.argsort(score[among])][:n]
            assert ranking.ids[k].tolist() == expected.tolist()
            np.testing.assert_array_equal(ranking.delta_p[k], shift.delta_p[k, expected])
            np.testing.assert_array_equal(ranking.log_ratio[k], shift.log_ratio[k, expected])


def test_too_few_tokens_are_filled_up_with_none() -> None:
    p = np.asarray([[0.9, 0.09, 0.01, 0.0]], np.float32)
    delta = np.asarray([[-0.5, 0.0, 0.0, 0.5]], np.float32)
    shift = Shift(delta, delta * 2, p, np.zeros(1, np.float32), np.zeros(1, np.float32), np.ones(1, np.int64))
    top = shift.top(6, floor=0.05)
    assert top.promoted.ids[0, 0] == 3 and top.promoted.ids[0, 4:].tolist() == [-1, -1]
    assert top.promoted_ratio.ids[0].tolist() == [3, 1, 0, -1, -1, -1]
    assert top.demoted_ratio.ids[0].tolist() == [0, 1, 3, -1, -1, -1]
    assert top.demoted_ratio.log_ratio[0].tolist() == [-1, 0, 1, 0, 0, 0]
    with pytest.raises(ConfigError, match="got 0"):
        shift.top(0)


# The logit lens


def test_the_lens_is_the_unembedding_of_the_weighted_direction(architecture: LoadedModel) -> None:
    norm = architecture.model.base_model
    norm = next(getattr(norm, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(norm, name))
    norm.weight.data = torch.linspace(0.5, 2, 32)
    try:
        v = directions(4, 32)
        found = logit_lens(architecture, v)
        centred = v if not hasattr(norm, "bias") else v - v.mean(1, keepdims=True)
        expected = (centred * norm.weight.numpy()) @ architecture.model.get_output_embeddings().weight.numpy().T
        np.testing.assert_allclose(found, expected, atol=1e-4)
    finally:
        norm.weight.data = torch.ones(32)


def test_without_a_final_norm_the_lens_is_the_unembedding(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradatoms.lookahead._final_norm", lambda _loaded: None)
    v = directions(2, 32)
    expected = v @ tiny.model.get_output_embeddings().weight.numpy().T
    np.testing.assert_allclose(logit_lens(tiny, v), expected, atol=1e-5)


# J along a step


@pytest.mark.parametrize("objective", ["nll", "contrast"])
def test_a_step_downhill_lowers_the_objective_by_its_slope(
    tiny: LoadedModel, examples: list[Example], objective: str
) -> None:
    hook = tiny.hook(HOOK)
    sequences = [branch for e in tokenize(tiny, examples, objective=objective) for branch in e]
    g, losses = [], []
    for sequence in sequences:
        (batch,) = batched([sequence], batch_tokens=64, device=tiny.device)
        found = ResidualGradients(tiny, [hook])(batch)
        g.append(found.gradients[HOOK][0])
        losses.append(float(found.sequence_loss[0]))
    norms = np.linalg.norm(g, axis=1)
    unit = np.stack(g) / norms[:, None]
    eta = 1e-3
    steps = np.stack([-unit, unit, np.zeros_like(unit)], axis=1)
    found_steps = stepped(tiny, hook, [(s, s.rows[0]) for s in sequences], steps, eta=eta)
    J, kl = found_steps.objective, found_steps.kl  # of the next token from that after the first step
    np.testing.assert_allclose(kl[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(kl[:, 3], kl[:, 0], atol=1e-6)
    np.testing.assert_allclose(kl[:, 2].mean(), 4 * kl[:, 0].mean(), rtol=0.2)  # twice as far, four times the KL
    np.testing.assert_allclose(J[:, 0], losses, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(J[:, 3], J[:, 0], atol=1e-5)
    assert (J[:, 1] < J[:, 0]).all() and (J[:, 2] > J[:, 0]).all()
    lengths = [residual_norm(tiny, s.ids, s.rows[0]) for s in sequences]
    np.testing.assert_allclose((J[:, 2] - J[:, 1]) / 2, eta * np.asarray(lengths) * norms, rtol=0.05)


def residual_norm(loaded: LoadedModel, ids: Sequence[int], position: int) -> float:
    seen: list[torch.Tensor] = []
    with torch.no_grad(), edit_output(loaded.hook(HOOK).module, seen.append):
        loaded.model(input_ids=torch.tensor([list(ids)]))
    return float(seen[0][0, position].norm())


def test_a_step_at_a_later_position_leaves_earlier_terms_out(tiny: LoadedModel) -> None:
    example = Example(prompt="The capital", target=" of France is")
    ((sequence,),) = tokenize(tiny, [example], positions="prediction")
    v = directions(1, 32)
    for position in sequence.rows:
        J = stepped(tiny, tiny.hook(HOOK), [(sequence, position)], v[None], eta=0.2).objective[0]
        for column, alpha in ((0, 0.0), (1, 0.2)):
            log_probs = whole(tiny, sequence.ids, v[0], alpha, at=position).log_softmax(-1)
            expected = -sum(float(log_probs[q, token]) for q, token, _ in sequence.terms if q >= position)
            assert J[column] == pytest.approx(expected, abs=1e-4)


def test_each_row_has_its_step_length(tiny: LoadedModel, examples: list[Example]) -> None:
    branches = [(s, s.rows[0]) for e in tokenize(tiny, examples) for s in e]
    v = directions(len(branches), 32)[:, None]
    eta = np.linspace(-0.3, 0.3, len(branches))
    found = stepped(tiny, tiny.hook(HOOK), branches, v, eta=eta)
    for i, branch in enumerate(branches):
        alone = stepped(tiny, tiny.hook(HOOK), [branch], v[i : i + 1], eta=float(eta[i]))
        np.testing.assert_allclose(found.objective[i], alone.objective[0], atol=1e-4)
    assert np.abs(found.objective[:, 1] - found.objective[:, 0]).max() > 1e-2


def test_logits_after_texts_of_different_length(architecture: LoadedModel) -> None:
    contexts = ids_of(architecture)[:2]
    prefix = run_prefix(architecture, [c[:-1] for c in contexts])
    embeds = architecture.model.get_input_embeddings()(torch.tensor([c[-1:] for c in contexts]))
    tail = read_tail(architecture, prefix, torch.arange(2), embeds)
    texts = [[20, 30, 40], [], [50], [60, 61]]
    found = next_logits(architecture, tail, torch.tensor([0, 1, 1, 0]), texts)
    for row, text, logits in zip((0, 1, 1, 0), texts, found, strict=True):
        torch.testing.assert_close(logits, whole(architecture, [*contexts[row], *text])[-1], atol=2e-4, rtol=1e-3)
