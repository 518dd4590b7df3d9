"""What is to be harvested: settings, the examples as token sequences in units of work, and the store's header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gradatoms.errors import ConfigError, ExampleError
from gradatoms.examples import RESERVED, Example
from gradatoms.gradients.batches import PADDINGS
from gradatoms.gradients.plan import HarvestPlan, make_plan
from gradatoms.gradients.ranks import Ranks
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.rows import merge_rows
from gradatoms.gradients.sequences import OBJECTIVES, POSITIONS, TokenSequence, Unusable, tokenize_usable
from gradatoms.gradients.skipped import counted
from gradatoms.gradients.tuning import Choices, choose, document_tokens
from gradatoms.gradients.weights import DOCUMENT, Weights
from gradatoms.models import HookSite, LoadedModel
from gradatoms_store import ACTIVATION, ExampleRecord, GradientBlock, HookSpec, Store, StoreHeader

COMPUTE_DTYPES = ("float32", "bfloat16", "auto")


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What is harvested, and how."""

    hooks: tuple[str, ...] = ()
    """Hook names, globs, or ``all``; empty for the middle of the network."""
    objective: str = "nll"
    positions: str = "last"
    activations: bool = False
    """Store h beside g, as hooks whose names end in ``:activation``."""
    dtype: str = "float32"
    """Compute dtype: ``float32``; ``bfloat16`` autocast (cosine about 0.999); or ``auto``, which takes bfloat16 where the
    processor has it and a cosine to float32 of at least 0.99 at the 5th percentile of a batch says that it is safe."""
    store_dtype: str = "float16"
    """Dtype of the stored unit directions."""
    batch_tokens: int | None = None
    """Padded tokens in a batch; bounds memory. None finds the fastest (of rows of documents: DOCUMENT_TOKENS); out of memory halves it."""
    padding: str = "auto"
    """``right`` without a mask, ``masked`` to the right, ``left`` with one, or ``auto``, the first that changes no row."""
    share_prefixes: bool = True
    """Compute what prompts begin with alike once, where that saves work and the model allows it."""
    unusable: str = "skip"
    """``skip`` and list examples that cannot be used, or ``stop``."""
    nan: str = "stop"
    """``stop`` at a gradient that is not finite, or ``drop`` and list its row."""
    unit_examples: int = 512
    """Examples in a unit of work; a resume starts at the first unit that is not committed."""
    commit_seconds: float = 30.0
    """A shard is committed, in the background, when it is full or this much time has passed: what a kill can cost."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("objective", OBJECTIVES),
            ("positions", POSITIONS),
            ("dtype", COMPUTE_DTYPES),
            ("padding", (*PADDINGS, "auto")),
            ("unusable", ("skip", "stop")),
            ("nan", ("stop", "drop")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"expected {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("batch_tokens", "unit_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"expected {name} of at least 1, got {value}")


@dataclass(frozen=True)
class HarvestTask:
    """The examples as token sequences, in units of work, and what they are harvested with."""

    loaded: LoadedModel
    examples: Sequence[Example]
    config: HarvestConfig
    reference: LoadedModel | None
    weights: Weights | None
    ranks: Ranks
    hooks: list[HookSite]
    """Where activation gradients are taken; none of weights."""
    sequences: list[list[TokenSequence]]
    unusable: list[Unusable]
    units: list[range]
    header: StoreHeader

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        examples: Sequence[Example],
        config: HarvestConfig,
        reference: LoadedModel | None,
        ranks: Ranks | None = None,
        weights: Weights | None = None,
    ) -> HarvestTask:
        """Tokenise, and check what can be checked before work.

        Raises:
            ConfigError, HookError, ExampleError: as for ``harvest``.
        """
        if reference is not None and config.objective != "kl":
            raise ConfigError(
                f"expected objective kl with a second model, got {config.objective}; leave one of them out"
            )
        if weights is None:
            config = replace(config, hooks=config.hooks or (loaded.default_hook(),))
        else:
            require_document_rows(config, ranks)
            config = replace(config, share_prefixes=False, batch_tokens=config.batch_tokens or document_tokens(loaded))
        hooks = loaded.find_hooks(config.hooks)
        sequences, unusable = tokenize_usable(
            loaded,
            examples,
            objective=config.objective,
            positions=config.positions,
            reference=reference is not None,
        )
        if unusable and (config.unusable == "stop" or len(unusable) == len(examples)):
            first = unusable[0]
            others = f" (and {len(unusable) - 1} more that cannot be used)" if len(unusable) > 1 else ""
            raise ExampleError(f"example {first.example + 1} {first.detail}{others}")
        n, step = len(examples), config.unit_examples
        units = [range(start, min(start + step, n)) for start in range(0, n, step)]
        header = _header(loaded, examples, config, hooks, len(units), reference, weights)
        return cls(
            loaded, examples, config, reference, weights, ranks or Ranks(), hooks, sequences, unusable, units, header
        )

    def make(self, choices: Choices) -> ResidualGradients:
        """What takes gradients, as chosen."""
        return self._make(choices.dtype, choices.attention)

    def _make(self, dtype: str, attention: Sequence[tuple[int, str]]) -> ResidualGradients:
        if self.weights is not None:
            autocast = torch.bfloat16 if dtype == "bfloat16" else None
            return self.weights.taker(self.loaded, autocast=autocast, reference=self.reference, attention=attention)
        return ResidualGradients(
            self.loaded,
            self.hooks,
            autocast=torch.bfloat16 if dtype == "bfloat16" else None,
            reference=self.reference,
            activations=self.config.activations,
            attention=attention,
        )

    def choose(self) -> Choices:
        """Measure what the config leaves open."""
        units = [unit for unit in map(self.branches, range(len(self.units))) if unit]
        return choose(
            self.loaded,
            [branch for unit in units for branch in unit],
            units[len(units) // 2],
            self._make,
            dtype=self.config.dtype,
            batch_tokens=self.config.batch_tokens,
            padding=self.config.padding,
            share_prefixes=self.config.share_prefixes,
            measure=not self.ranks.together,
        )

    def left(self, done: frozenset[int], shard: tuple[int, int] | None) -> list[int]:
        """Units that are to do, of one part of the store or of all."""
        i, n = shard or (0, 1)
        return [number for number in range(i, len(self.units), n) if number not in done]

    def branches(self, unit: int) -> list[TokenSequence]:
        """The token sequences of a unit."""
        return [branch for i in self.units[unit] for branch in self.sequences[i]]

    def block(
        self, take: ResidualGradients, choices: Choices, branches: Sequence[TokenSequence]
    ) -> GradientBlock | None:
        """The rows of some examples' sequences; None of none."""
        found = [take(choices.batch(group, self.loaded.device)) for group in choices.groups(branches)]
        return merge_rows(found, self.sequences) if found else None

    def plan(self, out: Path, units: Sequence[int], take: ResidualGradients, choices: Choices) -> HarvestPlan:
        """What there is to do of these units."""
        left = [i for number in units for i in self.units[number]]
        reasons = counted(item.reason for item in self.unusable)
        examples, sequences = [self.examples[i] for i in left], [self.sequences[i] for i in left]
        return make_plan(examples, sequences, take, choices, self.header, out, reasons)


def require_document_rows(config: HarvestConfig, ranks: Ranks | None = None) -> None:
    """Refuse what rows of whole documents do not have.

    Raises:
        ConfigError: hooks, positions or activations, or a model that ranks share.
    """
    if config.hooks or config.activations or config.positions != "last" or (ranks is not None and ranks.together):
        raise ConfigError(
            "expected no hooks, positions or activations with gradients of weights, and the model whole, got one of them; "
            "leave them out"
        )


def _header(
    loaded: LoadedModel,
    examples: Sequence[Example],
    config: HarvestConfig,
    hooks: Sequence[HookSite],
    n_units: int,
    reference: LoadedModel | None,
    weights: Weights | None,
) -> StoreHeader:
    digest = hashlib.sha256(f"{config.unit_examples}".encode())
    for e in examples:
        line: list[object] = [e.prompt, e.target, e.foil, e.concept, sorted(e.meta.items())]
        line += [e.extras()] if e.extras() else []
        digest.update(json.dumps(line, ensure_ascii=False).encode())
    specs = [
        HookSpec(name=h.name + end, hf_name=h.hf_name + end, d=h.d)
        for end in ("", ACTIVATION)[: 1 + config.activations]
        for h in hooks
    ]
    return StoreHeader(
        model=loaded.fingerprint.to_dict(),
        hooks=tuple(specs if weights is None else weights.specs()),
        space="activation" if weights is None else "weights",
        objective=config.objective if reference is None else f"kl:{reference.fingerprint.sha}",
        positions=config.positions if weights is None else DOCUMENT,
        dtype=config.store_dtype,
        plan=digest.hexdigest(),
        n_units=n_units,
        n_examples=len(examples),
        seed=config.seed,
    )


def record_of(number: int, example: Example) -> ExampleRecord:
    extras = example.extras()
    return ExampleRecord(
        id=number,
        prompt=example.prompt,
        target=example.target,
        foil=example.foil,
        concept=example.concept,
        meta=json.dumps(example.meta | ({RESERVED: extras} if extras else {}), ensure_ascii=False, sort_keys=True),
    )


def examples_of(store: Store) -> list[Example]:
    """The examples of a store, in the order of their ids."""
    return [example_of(record) for record in store.examples]


def example_of(record: ExampleRecord) -> Example:
    """The example that a record of a store holds."""
    meta = json.loads(record.meta)
    extras = meta.pop(RESERVED, {})
    fields = {"prompt": record.prompt, "target": record.target, "foil": record.foil, "concept": record.concept}
    return Example.with_extras(extras, **fields, meta=meta)
