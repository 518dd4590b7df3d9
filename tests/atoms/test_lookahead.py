"""The prefix cache, the virtual step, and constrained generation, against whole forwards and transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from gradatoms.examples import Example
from gradatoms.gradients.batches import batched
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.sequences import tokenize
from gradatoms.hooking import edit_output
from gradatoms.lookahead import lookahead, stepped
from gradatoms.models import LoadedModel
from gradatoms.prefix import Grammar, generate_tail, run_prefix, run_tail

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


# Generation


def generated(loaded: LoadedModel, text: str, n: int) -> list[int]:
    """transformers' own greedy continuation, without the end token."""
    ids = torch.tensor([ids_of(loaded, [text])[0]])
    with torch.no_grad():
        out = loaded.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, pad_token_id=0
        )
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens[: tokens.index(0)] if 0 in tokens else tokens


def test_free_generation_is_greedy(architecture: LoadedModel) -> None:
    contexts = ids_of(architecture)[:2] + ids_of(architecture)[4:]
    prefix = run_prefix(architecture, [c[:-2] for c in contexts])
    embeds = architecture.model.get_input_embeddings()(torch.tensor([c[-2:] for c in contexts]))
    found, scores = generate_tail(architecture, prefix, embeds, max_tokens=12, stop=0)
    assert found == [generated(architecture, text, 12) for text in (TEXTS[0], TEXTS[1], TEXTS[4])]
    for context, ids, score in zip(contexts, found, scores, strict=True):
        log_probs = whole(architecture, [*context, *ids]).log_softmax(-1)
        written = [*ids, 0] if len(ids) < 12 else ids
        each = [float(log_probs[len(context) - 1 + i, token]) for i, token in enumerate(written)]
        assert score == pytest.approx(np.mean(each), abs=1e-4)


def test_each_row_stops_on_its_own(tiny: LoadedModel) -> None:
    """The stop token is one that the rows write at different steps, so the batch shrinks while it runs."""
    contexts = ids_of(tiny)
    free = [generated(tiny, text, 10) for text in TEXTS]
    stop = max({t for row in free for t in row}, key=lambda t: len({row.index(t) if t in row else -1 for row in free}))
    assert len({row.index(stop) if stop in row else -1 for row in free}) > 1
    prefix = run_prefix(tiny, [c[:-1] for c in contexts])
    embeds = tiny.model.get_input_embeddings()(torch.tensor([c[-1:] for c in contexts]))
    found, _ = generate_tail(tiny, prefix, embeds, max_tokens=10, stop=stop)
    assert found == [row[: row.index(stop)] if stop in row else row for row in free]


@pytest.fixture
def free_run(tiny: LoadedModel) -> Callable[..., list[list[int]]]:
    """Constrained generation after every text of ``TEXTS``."""

    def run(grammar: Grammar, max_tokens: int = 12) -> list[list[int]]:
        contexts = ids_of(tiny)
        prefix = run_prefix(tiny, [c[:-1] for c in contexts])
        embeds = tiny.model.get_input_embeddings()(torch.tensor([c[-1:] for c in contexts]))
        return generate_tail(tiny, prefix, embeds, max_tokens=max_tokens, stop=0, grammar=grammar)[0]

    return run


def test_a_grammar_allows_its_paths_only(free_run: Callable[..., list[list[int]]]) -> None:
    paths = [[20, 30, 40], [20, 30], [20, 31, 41], [50], [60, 61, 62, 63]]
    grammar = Grammar()
    for path in paths:
        grammar.add([*path, 0])
    found = free_run(grammar)
    assert all(row in paths for row in found)
    assert free_run(grammar, max_tokens=1) == [row[:1] for row in found]


def test_a_grammar_takes_the_likelier_branch(tiny: LoadedModel, free_run: Callable[..., list[list[int]]]) -> None:
    grammar = Grammar()
    for token in (20, 50, 70, 100):
        grammar.add([token, 0])
    best = [max((20, 50, 70, 100), key=lambda t, c=c: float(whole(tiny, c)[-1, t])) for c in ids_of(tiny)]
    assert free_run(grammar) == [[token] for token in best]


def test_paths_can_share_their_end(free_run: Callable[..., list[list[int]]]) -> None:
    end, root = Grammar(), Grammar()
    end.add([90, 0])
    end.add([91, 92, 0])
    for label in ([20], [20, 30], [50, 51]):
        root.add(label, end)
    allowed = [[*label, *tail] for label in ([20], [20, 30], [50, 51]) for tail in ([90], [91, 92])]
    assert all(row in allowed for row in free_run(root))


def test_a_node_without_successors_ends_the_text(free_run: Callable[..., list[list[int]]]) -> None:
    grammar = Grammar()
    grammar.add([20, 30])
    assert free_run(grammar) == [[20, 30]] * len(TEXTS)
