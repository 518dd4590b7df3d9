"""Greedy writing after cached texts: free, within a grammar, guided, and with drafts; against transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from gradatoms import writing
from gradatoms.models import LoadedModel
from gradatoms.prefix import Tail, go_on, read_tail, run_prefix
from gradatoms.writing import Grammar, Written, choices, step, write

TEXTS = ("The capital of France is", "The capital of Japan is", "hot", "x", "Two plus two is four, and three")


def ids_of(loaded: LoadedModel, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def whole(loaded: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    """Logits (S, V) of one forward over all of ``ids``."""
    with torch.no_grad():
        return loaded.model(input_ids=torch.tensor([list(ids)])).logits[0].float()


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
    found = write(architecture, read_tail(architecture, prefix, torch.arange(3), embeds), max_tokens=12, stop=0)
    assert [w.ids for w in found] == [generated(architecture, text, 12) for text in (TEXTS[0], TEXTS[1], TEXTS[4])]
    for context, one in zip(contexts, found, strict=True):
        assert_scored(architecture, context, one, [*one.ids, 0] if len(one.ids) < 12 else one.ids)


def assert_scored(loaded: LoadedModel, context: list[int], one: Written, tokens: list[int]) -> None:
    """The log-probability of ``tokens`` after ``context``, by one whole forward pass."""
    log_probs = whole(loaded, [*context, *tokens]).log_softmax(-1)
    each = [float(log_probs[len(context) - 1 + i, token]) for i, token in enumerate(tokens)]
    assert one.n == len(tokens) and one.log_prob == pytest.approx(sum(each), abs=1e-3)


def test_each_row_stops_on_its_own(tiny: LoadedModel) -> None:
    """The stop token is one that the rows write at different steps, so the batch shrinks while it runs."""
    contexts = ids_of(tiny)
    free = [generated(tiny, text, 10) for text in TEXTS]
    stop = max({t for row in free for t in row}, key=lambda t: len({row.index(t) if t in row else -1 for row in free}))
    assert len({row.index(stop) if stop in row else -1 for row in free}) > 1
    prefix = run_prefix(tiny, [c[:-1] for c in contexts])
    embeds = tiny.model.get_input_embeddings()(torch.tensor([c[-1:] for c in contexts]))
    tail = read_tail(tiny, prefix, torch.arange(len(contexts)), embeds)
    assert [w.ids for w in write(tiny, tail, max_tokens=10, stop=stop)] == [
        row[: row.index(stop)] if stop in row else row for row in free
    ]


@pytest.fixture
def free_run(tiny: LoadedModel) -> Callable[..., list[list[int]]]:
    """Constrained generation after every text of ``TEXTS``."""

    def run(grammar: Grammar, max_tokens: int = 12) -> list[list[int]]:
        contexts = ids_of(tiny)
        prefix = run_prefix(tiny, [c[:-1] for c in contexts])
        embeds = tiny.model.get_input_embeddings()(torch.tensor([c[-1:] for c in contexts]))
        tail = read_tail(tiny, prefix, torch.arange(len(contexts)), embeds)
        found = write(tiny, tail, max_tokens=max_tokens, stop=0, starts=[grammar.start()] * len(contexts))
        for context, one in zip(contexts, found, strict=True):
            assert_scored(tiny, context, one, one.ids if one.n == len(one.ids) else [*one.ids, 0])
        return [one.ids for one in found]

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


def test_a_path_may_be_the_beginning_of_another_whatever_follows_it(free_run: Callable[..., list[list[int]]]) -> None:
    """After ``20`` the end begins with the token by which ``20 90 50`` goes on: neither way may be lost or leak."""
    end, root = Grammar(), Grammar()
    end.add([90, 0])
    root.add([20], end)
    root.add([20, 90, 50], end)
    root.add([30], end)
    paths: set[tuple[int, ...]] = set()
    waiting: list[tuple[tuple[int, ...], tuple[Grammar, ...]]] = [((), root.start())]
    while waiting:
        path, state = waiting.pop()
        following = choices(state)
        paths |= set() if following else {path}
        waiting += [((*path, token), step(state, token)) for token in following]
    assert paths == {(20, 90, 0), (20, 90, 50, 90, 0), (30, 90, 0)}
    assert all((*row, 0) in paths for row in free_run(root))


def test_guidance_takes_off_what_the_plain_text_makes_likely(tiny: LoadedModel) -> None:
    contexts = ids_of(tiny)[:2]
    prefix = run_prefix(tiny, [c[:-1] for c in contexts])
    embed = tiny.model.get_input_embeddings()
    embeds = torch.cat([embed(torch.tensor([c[-1:] for c in contexts])), embed(torch.tensor([[7], [9]]))])
    tail = read_tail(tiny, prefix, torch.tensor([0, 1, 0, 1]), embeds)
    for gamma in (0.5, 1.0):
        found = write(tiny, tail, max_tokens=3, stop=0, guidance=gamma)
        for i, other in enumerate((7, 9)):
            ids: list[int] = []
            while len(ids) < 3 and (not ids or ids[-1] != 0):
                heard = whole(tiny, [*contexts[i], *ids])[-1].log_softmax(-1)
                plain = whole(tiny, [*contexts[i][:-1], other, *ids])[-1].log_softmax(-1)
                ids.append(int((heard - gamma * plain).argmax()))
            assert found[i].ids == [t for t in ids if t != 0]


def drafted(loaded: LoadedModel, grammar: Grammar, drafts: list[list[int]] | None, **more: float) -> list[Written]:
    """Texts written after ``TEXTS``; with guidance, beside the same texts with another last token."""
    contexts = ids_of(loaded)
    every = torch.arange(len(contexts))
    last = [[c[-1]] for c in contexts] + ([[7]] * len(contexts) if more else [])
    prefix = run_prefix(loaded, [c[:-1] for c in contexts])
    embeds = loaded.model.get_input_embeddings()(torch.tensor(last))
    tail = read_tail(loaded, prefix, every.repeat(2 if more else 1), embeds)
    return write(loaded, tail, max_tokens=9, stop=0, starts=[grammar.start()] * len(contexts), drafts=drafts, **more)


@pytest.mark.parametrize("guidance", [{}, {"guidance": 0.5}], ids=["plain", "guided"])
def test_a_draft_changes_nothing(architecture: LoadedModel, guidance: dict[str, float]) -> None:
    """Whatever it says: the text itself, one that leaves it early or late, one that ends too soon, or none."""
    tokens = torch.randint(1, 320, (40, 7), generator=torch.Generator().manual_seed(0)).tolist()
    grammar = Grammar()
    for path in tokens:
        for short in (path, [*path[:2], path[5], path[3]], [path[0], path[1]]):
            grammar.add([*short, 0])
    plain = drafted(architecture, grammar, None, **guidance)
    right = [[*one.ids, 0] for one in plain]
    others = [[*path, 0] for path in tokens[: len(plain)]]
    for drafts in (
        right,
        others,
        [[*a[:1], *b[1:]] for a, b in zip(right, others, strict=True)],
        [a[:2] for a in right],
        [a[:-1] for a in right],
        [[] if i % 2 else a for i, a in enumerate(right)],
        [[*a[:-1], 5, 6, 0] for a in right],
    ):
        found = drafted(architecture, grammar, drafts, **guidance)
        assert [(one.ids, one.n) for one in found] == [(one.ids, one.n) for one in plain]
        for one, before in zip(found, plain, strict=True):
            assert one.log_prob == pytest.approx(before.log_prob, abs=1e-3)


def test_a_right_draft_is_read_in_one_go(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(loaded: LoadedModel, tail: Tail, chains: Sequence[Sequence[int]]) -> object:
        calls.append(len(chains))
        return go_on(loaded, tail, chains)

    monkeypatch.setattr(writing, "go_on", counted)
    root = Grammar()
    node = root
    for _ in range(6):
        following = Grammar()
        for token in range(20, 60):
            node.add([token], following)
        node = following
    node.add([0])
    plain = drafted(tiny, root, None)
    assert len(calls) == 6 and all(one.n == 7 for one in plain)
    calls.clear()
    assert [one.ids for one in drafted(tiny, root, [[*one.ids, 0] for one in plain])] == [one.ids for one in plain]
    assert calls == [len(TEXTS)]
