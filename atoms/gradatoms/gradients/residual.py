"""Activation gradients of a batch of token sequences, exactly, at the least cost.

For one example J = Σ_i sign_i · (−log p(token_i | tokens before position_i + 1)), a sum over the predicted target tokens
(sign +1) and, for objective ``contrast``, the foil's (sign −1). Rows are g = ∂J/∂h at (hook, position).

How the cost is kept down: parameters are frozen and the lowest hook's output is detached, so that no graph exists below
it; the output projection sees only the positions that predict a token; sequences of similar length share a batch. Rows
are right-padded and no mask is passed: a causal model never looks at what follows a position, so padding cannot change
a gradient. Examples are independent within a batch, so the gradient of the batch's summed J holds every example's own.

Legend: B sequences, S tokens, D width, P predicted positions, R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn import functional as F

from gradatoms.errors import ConfigError, ExampleError
from gradatoms.examples import Example
from gradatoms.hooking import edit_site, plain_attention, predict_at
from gradatoms.models import HookSite, LoadedModel

OBJECTIVES = ("nll", "contrast")
POSITIONS = ("last", "prediction", "prompt", "all")
"""The prompt's last token, each position that predicts a target token, each of the prompt, or both of these."""

PLAIN_ATTENTION_TOKENS = 128
"""Batches of longer rows keep the model's own attention kernel, whose memory does not grow with the square of the length."""


@dataclass(frozen=True)
class TokenSequence:
    """One token sequence of an example, the tokens it should predict, and the positions whose gradient is kept."""

    example: int
    ids: tuple[int, ...]
    terms: tuple[tuple[int, int, int], ...]
    """(position, token, sign): J gains sign · −log p(token | ids[: position + 1])."""
    rows: tuple[int, ...]
    """Positions whose gradient becomes (part of) a row."""


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded sequences with their terms and rows as flat index tensors."""

    ids_BS: Int[torch.Tensor, "B S"]
    term_seq_P: Int[torch.Tensor, " P"]
    term_pos_P: Int[torch.Tensor, " P"]
    term_token_P: Int[torch.Tensor, " P"]
    term_sign_P: Float[torch.Tensor, " P"]
    row_seq_R: Int[torch.Tensor, " R"]
    row_pos_R: Int[torch.Tensor, " R"]
    example_B: tuple[int, ...]
    n_tokens: int
    """Tokens without padding."""


@dataclass(frozen=True)
class BatchGradients:
    """Raw gradients of a batch, one entry a row, and its losses, one a sequence."""

    gradients: dict[str, Float[np.ndarray, "R D"]]
    example: Int[np.ndarray, " R"]
    position: Int[np.ndarray, " R"]
    token: Int[np.ndarray, " R"]
    sequence_example: Int[np.ndarray, " B"]
    sequence_loss: Float[np.ndarray, " B"]
    """J of each sequence in nats; an example's J is the sum over its sequences."""


def tokenize(
    loaded: LoadedModel, examples: Sequence[Example], *, objective: str = "nll", positions: str = "last"
) -> list[list[TokenSequence]]:
    """Token sequences of each example: one, or two where a foil of several tokens needs its own branch.

    A foil of one token is predicted from the same position as the target's first, so it shares the target's sequence.

    Raises:
        ConfigError: unknown objective or positions.
        ExampleError: a missing foil, a prompt or target without tokens, or more tokens than the model's context.
    """
    if objective not in OBJECTIVES:
        raise ConfigError(f"expected an objective of {', '.join(OBJECTIVES)}, got {objective!r}")
    if positions not in POSITIONS:
        raise ConfigError(f"expected positions of {', '.join(POSITIONS)}, got {positions!r}")
    if not examples:
        raise ExampleError("expected at least one example, got none; check the file and --limit")
    prompts = loaded.tokenizer([e.prompt for e in examples]).input_ids
    targets = _ids(loaded, [e.target for e in examples])
    foils: list[list[int]] = [[] for _ in examples]
    if objective == "contrast":
        missing = next((i for i, e in enumerate(examples) if e.foil is None), None)
        if missing is not None:
            raise ExampleError(
                f"objective contrast expects a foil in every example, example {missing + 1} ({_short(examples[missing].prompt)}) "
                "has none; add foils or use --objective nll"
            )
        foils = _ids(loaded, [e.foil or "" for e in examples])
    sequences = []
    for i, (prompt, target, foil) in enumerate(zip(prompts, targets, foils, strict=True)):
        if not prompt or not target:
            raise ExampleError(
                f"example {i + 1} ({_short(examples[i].prompt)}): expected at least one token in prompt and target, got none"
            )
        needed = len(prompt) + max(len(target), len(foil)) - 1
        if needed > loaded.max_tokens:
            raise ExampleError(
                f"example {i + 1} ({_short(examples[i].prompt)}): expected at most {loaded.max_tokens} tokens, prompt and target take "
                f"{needed}; shorten or remove it"
            )
        sequences.append(_sequences(i, list(prompt), target, foil, positions))
    return sequences


def _sequences(
    example: int, prompt: list[int], target: list[int], foil: list[int], positions: str
) -> list[TokenSequence]:
    last = len(prompt) - 1
    terms = [(last + i, token, 1) for i, token in enumerate(target)]
    first = 0 if positions in ("prompt", "all") else last
    end = last + 1 if positions in ("last", "prompt") else last + len(target)
    if len(foil) == 1:
        terms.append((last, foil[0], -1))
    found = [TokenSequence(example, (*prompt, *target[:-1]), tuple(terms), tuple(range(first, end)))]
    if len(foil) > 1:
        foil_terms = tuple((last + i, token, -1) for i, token in enumerate(foil))
        shared = tuple(range(first, last + 1))  # behind the prompt, the branches are of different tokens
        found.append(TokenSequence(example, (*prompt, *foil[:-1]), foil_terms, shared))
    return found


def _ids(loaded: LoadedModel, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = loaded.tokenizer(texts, add_special_tokens=False).input_ids
    return ids


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def batched(sequences: Sequence[TokenSequence], *, batch_tokens: int, device: torch.device) -> Iterator[TokenBatch]:
    """Group sequences by length into batches of at most ``batch_tokens`` padded tokens (at least one sequence each)."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].ids), i))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and len(sequences[order[stop]].ids) * (stop - start + 1) <= batch_tokens:
            stop += 1
        yield _pad([sequences[i] for i in order[start:stop]], device)
        start = stop


def _pad(group: Sequence[TokenSequence], device: torch.device) -> TokenBatch:
    width = max(len(s.ids) for s in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    for b, sequence in enumerate(group):
        ids[b, : len(sequence.ids)] = torch.tensor(sequence.ids)
    terms = [(b, *term) for b, s in enumerate(group) for term in s.terms]
    rows = [(b, position) for b, s in enumerate(group) for position in s.rows]
    seq, pos, token, sign = (torch.tensor(column, device=device) for column in zip(*terms, strict=True))
    row_seq, row_pos = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    return TokenBatch(
        ids.to(device), seq, pos, token, sign.float(), row_seq, row_pos,
        tuple(s.example for s in group), sum(len(s.ids) for s in group),
    )  # fmt: skip


def batch_gradients(
    loaded: LoadedModel, batch: TokenBatch, hooks: Sequence[HookSite], *, autocast: torch.dtype | None = None
) -> BatchGradients:
    """∂J/∂h at every hook for the rows of ``batch``, float32.

    Args:
        hooks: the sites, in any order; the graph is cut at those with no other below them.
        autocast: compute in this dtype where it is faster (``torch.bfloat16``); gradients come back in float32.
    """
    kept: dict[str, torch.Tensor] = {}

    def keep(site: HookSite, h: torch.Tensor) -> torch.Tensor:
        if not kept or not h.requires_grad:  # nothing below it is asked for
            h = h.detach().requires_grad_(True)
        elif site.kind == "resid_pre":
            h = h.view_as(h)  # what the block does with it, and nobody else
        kept[site.name] = h
        return h.clone() if site.kind in ("attn_out", "mlp_out") else h  # some blocks add to these in place

    with ExitStack() as stack:
        for site in hooks:
            stack.enter_context(edit_site(site, lambda h, site=site: keep(site, h)))  # type: ignore[misc]
        stack.enter_context(predict_at(loaded, batch.term_seq_P, batch.term_pos_P))
        stack.enter_context(torch.enable_grad())
        if batch.ids_BS.shape[1] <= PLAIN_ATTENTION_TOKENS:
            stack.enter_context(plain_attention(loaded))
        if autocast is not None:
            stack.enter_context(torch.autocast(batch.ids_BS.device.type, autocast))
        logits_PV = loaded.model(input_ids=batch.ids_BS, use_cache=False).logits
    nll_P = F.cross_entropy(logits_PV.float(), batch.term_token_P, reduction="none")
    signed_P = nll_P * batch.term_sign_P
    grads = torch.autograd.grad(signed_P.sum(), [kept[h.name] for h in hooks])
    loss_B = torch.zeros(len(batch.example_B), device=nll_P.device).index_add_(0, batch.term_seq_P, signed_P.detach())
    seq, pos = batch.row_seq_R, batch.row_pos_R
    return BatchGradients(
        {h.name: g[seq, pos].float().cpu().numpy() for h, g in zip(hooks, grads, strict=True)},
        np.asarray([batch.example_B[b] for b in seq.tolist()], dtype=np.int64),
        pos.cpu().numpy().astype(np.int32),
        batch.ids_BS[seq, pos].cpu().numpy().astype(np.int32),
        np.asarray(batch.example_B, dtype=np.int64),
        loss_B.cpu().numpy(),
    )
