"""How a harvest runs on this machine: dtype, batch size, padding and attention, measured once and kept with the store.

The choices are written to ``harvest.json`` in the store's folder, and whoever goes on with the store takes them from
there: timings differ from run to run, and rows are equal bit for bit only if the same choices made them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gradatoms.errors import GradientError
from gradatoms.gradients.batches import PADDINGS, TokenBatch, by_budget, pad
from gradatoms.gradients.residual import BatchGradients, ResidualGradients, default_attention
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.gradients.sharing import by_shared_budget, head_of, longest_shared, saving, share
from gradatoms.hooking import has_bfloat16
from gradatoms.models import LoadedModel

log = logging.getLogger(__name__)

FILE = "harvest.json"
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Padded tokens a batch where nothing was measured."""
DOCUMENT_TOKENS = {"cpu": 512, "cuda": 16384}
"""Of whole documents: the graph reaches down to the lowest module, so memory decides. (1,024 are some 8 % faster on two cores.)"""
WORTH_SECONDS = 60.0
"""A harvest that takes less is not worth measuring for."""
PROBE_TOKENS = 256
"""Of the batch that tells how long a harvest takes."""
FIDELITY = 0.99
"""Least cosine to float32, at the 5th percentile of rows, that bfloat16 must reach."""
_DEPENDENCE = 0.02
"""Relative change of J, or of h at the last block, that is not rounding; float32 gives about 1e-5."""
WORTH_SHARING = 1.2
"""How many times fewer token passes make sharing worth its masks."""
_EXACT = 1e-2
"""Relative difference of a gradient that sharing may make: rounding makes 1e-5 to 1e-3, a wrong mask far more."""
_WIDTHS = (32, 128, 512, 2048)
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Cosines of gradients to those in float32, over a batch."""

    percentile_5: float
    lowest: float


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How batches are made and computed."""

    dtype: str
    """``float32`` or ``bfloat16`` autocast."""
    batch_tokens: int
    """Padded tokens a batch; halved when memory runs out."""
    padding: str
    """One of PADDINGS."""
    attention: tuple[tuple[int, str], ...]
    """Attention implementation of batches up to each width; the model's own beyond."""
    shared: bool = False
    """Whether common beginnings of prompts are computed once."""
    fidelity: Fidelity | None = None
    """Of bfloat16, where it was measured."""

    def groups(self, branches: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
        """The sequences of each batch."""
        return list((by_shared_budget if self.shared else by_budget)(branches, self.batch_tokens))

    def batch(self, group: Sequence[TokenSequence], device: torch.device) -> TokenBatch:
        """A group as one batch."""
        return share(group, device) if self.shared else pad(group, device, self.padding)

    def save(self, store: Path) -> None:
        """Keep the choices in the store's folder."""
        partial = store / f"{FILE}.{os.getpid()}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(store / FILE)

    @classmethod
    def load(cls, store: Path) -> Choices | None:
        """What is kept there; None if nothing that can be read is."""
        try:
            data = json.loads((store / FILE).read_text(encoding="utf-8"))
            data["attention"] = tuple((int(width), str(name)) for width, name in data["attention"])
            data["fidelity"] = None if data["fidelity"] is None else Fidelity(**data["fidelity"])
            found = cls(**data)
            if (
                found.dtype not in ("float32", "bfloat16")
                or found.padding not in PADDINGS
                or not found.batch_tokens >= 1
            ):
                raise ValueError(f"unknown choices {found}")
            return found
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            log.warning("%s: not what a harvest writes; measured again", store / FILE)
            return None


Make = Callable[[str, Sequence[tuple[int, str]]], ResidualGradients]
"""From dtype and attention to what takes gradients."""


def choose(
    loaded: LoadedModel,
    branches: Sequence[TokenSequence],
    unit: Sequence[TokenSequence],
    make: Make,
    *,
    dtype: str,
    batch_tokens: int | None,
    padding: str,
    share_prefixes: bool = True,
    measure: bool = True,
) -> Choices:
    """Measure what is left open (dtype ``auto``, padding ``auto``, no batch size) on sequences of the corpus itself.

    Args:
        branches: all sequences, among which the shortest and the longest are tried beside each other.
        unit: those of one unit of work, from which batches are made, and within which beginnings can be shared.
        measure: whether timings may decide; ranks that must do the same may not.

    Raises:
        GradientError: a gradient depends on the batch that it is computed in, however it is padded.
    """
    attention = default_attention(loaded)
    if padding == "auto":
        padding = _padding(loaded, branches, make("float32", attention)) if batch_tokens != 1 else "right"
    found = Choices(
        dtype="float32",
        batch_tokens=batch_tokens or BATCH_TOKENS.get(loaded.device.type, BATCH_TOKENS["cpu"]),
        padding=padding,
        attention=attention,
    )
    if share_prefixes and padding == "right" and batch_tokens != 1 and len(unit) > 1:
        take = make("float32", attention)
        allowed = max(len(branch.ids) for branch in branches) <= longest_shared(loaded) and all(map(head_of, branches))
        found = replace(found, shared=allowed and _sharing_pays(unit, take))
    if dtype != "float32":
        sample = spread(unit, min(found.batch_tokens, 1024))
        fast = make("bfloat16", attention)
        fidelity = measure_fidelity(make("float32", attention), fast, found.batch(sample, loaded.device))
        safe = has_bfloat16(loaded.device.type) and fidelity.percentile_5 >= FIDELITY
        found = replace(found, dtype="bfloat16" if safe or dtype == "bfloat16" else "float32", fidelity=fidelity)
    if not measure or len(unit) < 2:
        return found
    tokens = sum(len(branch.ids) for branch in branches)
    take = make(found.dtype, attention)
    rate, _ = speed_within_memory(take, unit, replace(found, batch_tokens=min(PROBE_TOKENS, found.batch_tokens)))
    if tokens / rate < WORTH_SECONDS:
        return found
    _, size = speed_within_memory(take, unit, found)
    found = replace(found, batch_tokens=size)
    if not found.shared:
        found = replace(found, attention=_attention(loaded, unit, make, found))
    if batch_tokens is None:
        found = replace(found, batch_tokens=_batch_tokens(unit, make(found.dtype, found.attention), found))
    return found


def document_tokens(loaded: LoadedModel) -> int:
    """Padded tokens a batch of whole documents."""
    return DOCUMENT_TOKENS.get(loaded.device.type, DOCUMENT_TOKENS["cpu"])


def spread(branches: Sequence[TokenSequence], batch_tokens: int) -> list[TokenSequence]:
    """Sequences that fill one batch, evenly from all lengths."""
    ordered = sorted(branches, key=lambda branch: len(branch.ids))
    n = max(1, min(len(ordered), batch_tokens // len(ordered[-1].ids)))
    return [ordered[i * len(ordered) // n] for i in range(n)]


def middle_group(branches: Sequence[TokenSequence], choices: Choices) -> list[TokenSequence]:
    """The batch in the middle of all that the choices make of some sequences."""
    groups = choices.groups(branches)
    return groups[(len(groups) - 1) // 2]


def tokens_per_second(take: ResidualGradients, group: Sequence[TokenSequence], choices: Choices) -> float:
    """Speed on one batch, the second time that it is run."""
    batch = choices.batch(group, take.loaded.device)
    for _ in range(2):
        started = time.perf_counter()
        take(batch)
        seconds = time.perf_counter() - started
    return batch.n_tokens / seconds


def speed_within_memory(
    take: ResidualGradients, branches: Sequence[TokenSequence], choices: Choices
) -> tuple[float, int]:
    """Tokens a second on a batch of middling length, and the batch size, halved until memory is enough."""
    while True:
        group = middle_group(branches, choices)
        try:
            return tokens_per_second(take, group, choices), choices.batch_tokens
        except Exception as error:
            if not is_out_of_memory(error) or len(group) == 1:
                raise
        free_memory()
        total = sum(len(branch.ids) for branch in group)
        choices = replace(choices, batch_tokens=max(1, min(choices.batch_tokens, total) // 2))


def _sharing_pays(branches: Sequence[TokenSequence], take: ResidualGradients) -> bool:
    """Whether fewer tokens are to be computed, and the model takes masks of our own as meant."""
    loaded = take.loaded
    layers = loaded.fingerprint.n_layers
    above = 1 - (min(site.layer for site in take.hooks) + (take.hooks[0].kind == "resid_post")) / layers
    if saving(branches, above) < WORTH_SHARING:
        return False
    ordered = sorted(branches, key=lambda branch: len(branch.ids))
    neighbours = sorted(branches, key=head_of)[:4]
    sample = [*ordered[:: max(1, len(ordered) // 4)][:4], *neighbours, ordered[-1]]
    try:
        one = take(share(sample, loaded.device))
    except Exception as error:  # whatever a model says to masks that it does not know
        log.info("beginnings are not shared: %s", error)
        return False
    alone = [take(pad([branch], loaded.device)) for branch in sorted(sample, key=lambda s: (head_of(s), s.example))]
    for hook, g in one.gradients.items():
        expected = np.concatenate([a.gradients[hook] for a in alone])
        apart = np.linalg.norm(g - expected, axis=1)
        if not (apart <= _EXACT * np.linalg.norm(expected, axis=1) + 1e-30).all():
            log.info("beginnings are not shared: gradients at %s differ by %.1e", hook, float(apart.max()))
            return False
    return True


def measure_fidelity(exact: ResidualGradients, fast: ResidualGradients, batch: TokenBatch) -> Fidelity:
    """Cosines of the rows that two ways give of one batch, over all hooks."""
    cosines = []
    a, b = exact(batch).gradients, fast(batch).gradients
    for hook in a:
        norms = np.linalg.norm(a[hook], axis=1) * np.linalg.norm(b[hook], axis=1)
        cosines.append(np.einsum("rd,rd->r", a[hook], b[hook])[norms > 0] / norms[norms > 0])
    every = np.concatenate(cosines)
    if not len(every):
        return Fidelity(percentile_5=1.0, lowest=1.0)
    return Fidelity(percentile_5=float(np.percentile(every, 5)), lowest=float(every.min()))


def _padding(loaded: LoadedModel, branches: Sequence[TokenSequence], take: ResidualGradients) -> str:
    """The first padding that does not change what is padded, seen on the shortest sequence beside the longest."""
    ordered = sorted(branches, key=lambda branch: len(branch.ids))
    short, long = ordered[0], ordered[-1]
    if len(short.ids) == len(long.ids):
        return PADDINGS[0]
    last = ResidualGradients(
        loaded,
        [loaded.hooks[f"blocks.{loaded.fingerprint.n_layers - 1}.hook_resid_post"]],
        reference=take.reference,
        activations=True,
    )
    alone = last(pad([short], loaded.device))
    together = alone
    for padding in PADDINGS:
        try:
            together = last(pad([short, long], loaded.device, padding))
        except TypeError:  # it takes no positions
            continue
        if not _differs(alone, together):
            return padding
    raise GradientError(
        f"expected an example's gradient not to depend on its batch, in {type(loaded.model).__name__} J is "
        f"{alone.sequence_loss[0]:.4f} nats alone and {together.sequence_loss[0]:.4f} beside a longer example; harvest one at a time "
        "with --batch-tokens 1"
    )


def _differs(alone: BatchGradients, together: BatchGradients) -> bool:
    """Whether J, or h at the last block, is another."""
    (a,), (b,) = alone.activations.values(), together.activations.values()
    loss, other = float(alone.sequence_loss[0]), float(together.sequence_loss[0])
    far = abs(other - loss) > _DEPENDENCE * max(1.0, abs(loss))
    return far or float(np.linalg.norm(b[: len(a)] - a)) > _DEPENDENCE * float(np.linalg.norm(a))


def _attention(
    loaded: LoadedModel, branches: Sequence[TokenSequence], make: Make, found: Choices
) -> tuple[tuple[int, str], ...]:
    """The faster of the model's own and the plain implementation, for each width that holds a tenth of the tokens."""
    own, tokens = loaded.model.config._attn_implementation, sum(len(branch.ids) for branch in branches)
    chosen: list[tuple[int, str]] = []
    low = 0
    for width in _WIDTHS:
        members = [branch for branch in branches if low < len(branch.ids) <= width]
        if sum(len(branch.ids) for branch in members) >= tokens / 10:
            group = middle_group(members, found)
            speed = {
                name: tokens_per_second(make(found.dtype, ((width, name),)), group, found)
                for name in dict.fromkeys((own, "eager"))
            }
            chosen.append((width, max(speed, key=lambda name: speed[name])))
        low = width
    return tuple(chosen) or found.attention


def _batch_tokens(branches: Sequence[TokenSequence], take: ResidualGradients, found: Choices) -> int:
    """Double, or halve, the batch as long as that is faster by a twentieth."""
    lengths = sorted(len(branch.ids) for branch in branches)
    middle = lengths[len(lengths) // 2]

    def speed(size: int) -> float:
        try:
            sized = replace(found, batch_tokens=size)
            return tokens_per_second(take, middle_group(branches, sized), sized)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return 0.0

    best, size = speed(found.batch_tokens), found.batch_tokens
    for factor in (2.0, 0.5):
        while middle <= int(size * factor) < 2 * middle * len(branches):
            rate = speed(int(size * factor))
            if rate < 1.05 * best:
                break
            best, size = rate, int(size * factor)
        if size != found.batch_tokens:
            break
    return size


def free_memory() -> None:
    """Let go of what a pass that failed may have left."""
    gc.collect()
    return_pages()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def return_pages() -> None:
    """Give the system the memory of arrays that are gone; where glibc allocates it would keep pages, ever more of them.

    Every batch has its own shape, so freed pieces seldom fit the next one: a harvest of thousands of documents grew by gigabytes.
    """
    if _trim is not None:
        _trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
