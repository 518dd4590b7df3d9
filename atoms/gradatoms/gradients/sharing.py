"""What prompts begin with alike is computed once, and nothing before the first row is differentiated.

A row's gradient depends on its own position and those behind it; what stands before only gives keys and values. So each
sequence is cut before its first row. The heads of a batch make a tree of tokens in which a common beginning is there
once (as in tree attention, Cai et al., arXiv 2401.10774): its nodes run in one pass without a graph, each attending to its
ancestors. Then the tails run, each attending to the path of its head and to itself, with a graph from the hook up.

Nodes and tails of a few sequences share a line of the batch, so that attention, which grows with the square of a
line, stays small. Whether a model takes such masks and positions as meant is tried before it is relied on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int

from gradatoms.gradients.batches import TokenBatch, flat
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.models import LoadedModel

LINE = 192
"""Most nodes of heads in a line, and about the most tokens of tails, but for a single longer sequence."""


@dataclass
class _Line:
    """A tree of heads, and the sequences whose heads are in it."""

    ids: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    child: dict[tuple[int, int], int] = field(default_factory=dict)
    """(node, token) to node; the root is −1."""
    leaf: list[int] = field(default_factory=list)
    """Last node of each sequence's head."""
    members: list[TokenSequence] = field(default_factory=list)

    def missing(self, head: Sequence[int]) -> int:
        """Nodes that this head would add."""
        node = -1
        for i, token in enumerate(head):
            if (node, token) not in self.child:
                return len(head) - i
            node = self.child[node, token]
        return 0

    def add(self, sequence: TokenSequence) -> None:
        node = -1
        for token in head_of(sequence):
            key = (node, token)
            if key not in self.child:
                self.child[key] = len(self.ids)
                self.ids.append(token)
                self.parent.append(node)
                self.depth.append(0 if node < 0 else self.depth[node] + 1)
            node = self.child[key]
        self.leaf.append(node)
        self.members.append(sequence)

    def ancestors(self) -> torch.Tensor:
        """Whether node j is i or above it, (nodes, nodes)."""
        seen = torch.zeros(len(self.ids), len(self.ids), dtype=torch.bool)
        for i, parent in enumerate(self.parent):
            if parent >= 0:
                seen[i] = seen[parent]
            seen[i, i] = True
        return seen


@dataclass(frozen=True)
class Heads:
    """Trees of tokens, one a line, for a pass without a graph."""

    ids_LN: Int[torch.Tensor, "L N"]
    position_LN: Int[torch.Tensor, "L N"]
    mask: Float[torch.Tensor, "L 1 N N"]


def head_of(sequence: TokenSequence) -> tuple[int, ...]:
    """The tokens before the first row and the first prediction."""
    return sequence.ids[: min(sequence.rows[0], _first_predicted(sequence))] if sequence.rows else ()


def _first_predicted(sequence: TokenSequence) -> int:
    return min([*(position for position, _, _ in sequence.terms), *sequence.matched])


def by_shared_budget(sequences: Sequence[TokenSequence], batch_tokens: int) -> Iterator[list[TokenSequence]]:
    """Groups whose tails and distinct nodes of heads are at most ``batch_tokens`` (at least one sequence each)."""
    group: list[TokenSequence] = []
    total, before = 0, tuple[int, ...]()
    for sequence in sorted(sequences, key=lambda s: (head_of(s), s.example)):
        head = head_of(sequence)
        new = len(head) - _common(before, head) + len(sequence.ids) - len(head)
        if group and total + new > batch_tokens:
            yield group
            group, total, new = [], 0, len(sequence.ids)
        group.append(sequence)
        total, before = total + new, head
    if group:
        yield group


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def saving(sequences: Sequence[TokenSequence], above: float) -> float:
    """How many times fewer token passes sharing needs: a forward pass counts 1, a backward pass ``above``, the share of
    the blocks that it goes through."""
    plain = sum(len(s.ids) for s in sequences) * (1 + above)
    shared = _nodes(sorted(map(head_of, sequences))) + _tail_tokens(sequences) * (1 + above)
    return plain / max(1.0, shared)


def _nodes(heads: Iterable[tuple[int, ...]]) -> int:
    """Nodes of the tree of heads that come in order."""
    nodes, before = 0, tuple[int, ...]()
    for head in heads:
        nodes += len(head) - _common(before, head)
        before = head
    return nodes


def _tail_tokens(sequences: Sequence[TokenSequence]) -> int:
    return sum(len(s.ids) - len(head_of(s)) for s in sequences)


def share(group: Sequence[TokenSequence], device: torch.device) -> TokenBatch:
    """One batch of all sequences, their heads as trees."""
    lines = [_Line()]
    ordered = sorted(group, key=lambda s: (head_of(s), s.example))
    # Both parts of a line fill alike; and neither grows long, since attention takes the square of it.
    most = LINE * min(1.0, _tail_tokens(ordered) / max(1, _nodes(map(head_of, ordered))))
    for sequence in ordered:
        line = lines[-1]
        full = len(line.ids) + line.missing(head_of(sequence)) > LINE or _tail_tokens(line.members) >= most
        if line.members and full:
            lines.append(_Line())
        lines[-1].add(sequence)
    width = max(len(line.ids) for line in lines)
    tails = [[len(s.ids) - len(head_of(s)) for s in line.members] for line in lines]
    columns = max(map(sum, tails))
    node_ids = torch.zeros(len(lines), width, dtype=torch.long)
    node_positions = torch.zeros_like(node_ids)
    node_seen = torch.eye(width, dtype=torch.bool).repeat(len(lines), 1, 1)
    ids = torch.zeros(len(lines), columns, dtype=torch.long)
    positions = torch.zeros_like(ids)
    seen = torch.zeros(len(lines), columns, width + columns, dtype=torch.bool)
    seen[:, range(columns), range(width, width + columns)] = True
    line_of, shift = [], []
    for row, line in enumerate(lines):
        n = len(line.ids)
        ancestors = line.ancestors()
        node_ids[row, :n], node_positions[row, :n] = torch.tensor(line.ids, dtype=torch.long), _long(line.depth)
        node_seen[row, :n, :n] = ancestors
        start = 0
        for sequence, leaf, length in zip(line.members, line.leaf, tails[row], strict=True):
            cut, end = len(sequence.ids) - length, start + length
            ids[row, start:end] = torch.tensor(sequence.ids[cut:])
            positions[row, start:end] = torch.arange(cut, cut + length)
            if leaf >= 0:
                seen[row, start:end, :n] = ancestors[leaf]
            seen[row, start:end, width + start : width + end] = torch.ones(length, length, dtype=torch.bool).tril()
            line_of.append(row)
            shift.append(start - cut)
            start = end
    heads = Heads(node_ids.to(device), node_positions.to(device), _additive(node_seen, device)) if width else None
    return flat(
        ordered,
        device,
        ids_LS=ids,
        mask=_additive(seen, device),
        line_B=line_of,
        shift_B=shift,
        positions_LS=positions,
        heads=heads,
    )


def _long(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long)


def _additive(seen: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What is added to the scores: nothing where there is to be attention, the least number elsewhere."""
    mask = torch.zeros(seen.shape, device=device)
    return mask.masked_fill_(~seen.to(device), torch.finfo(torch.float32).min)[:, None]


def longest_shared(loaded: LoadedModel) -> int:
    """Longest sequence for which sharing may be tried: masks of our own take the place of a model's sliding windows."""
    config = loaded.model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return min([loaded.max_tokens, *(int(w) for w in windows if isinstance(w, int) and w > 0)])
