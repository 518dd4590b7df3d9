"""What a label is made from. For each atom: examples, what injecting it does, and what the fit said of it.

Everything here comes from rows the dictionary was fitted on; what labels are scored on (``Trials``) comes from held-out
rows and is never shown to a teacher; a ground-truth concept is in the trials only. On disk: ``evidence.h5`` (``storage.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradatoms.labels.label import Variant


@dataclass(frozen=True)
class TokenShift:
    """A token and how far an atom moves it."""

    token: str
    delta_p: float
    """Mean change of probability."""
    log_ratio: float
    """Mean change of log-probability, in nats."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What one sign of an atom does to the next-token distribution, averaged over one set of contexts."""

    kl: float
    """Mean KL(plain ‖ steered), nats."""
    entropy: float
    """Mean change of entropy, nats."""
    promoted: tuple[TokenShift, ...]
    """By Δp, largest rise first."""
    demoted: tuple[TokenShift, ...]
    """By Δp, largest fall first."""
    promoted_ratio: tuple[TokenShift, ...]
    """By log-ratio, among tokens of some probability before or after."""
    demoted_ratio: tuple[TokenShift, ...]


NOTHING_MOVED = Moved(kl=0.0, entropy=0.0, promoted=(), demoted=(), promoted_ratio=(), demoted_ratio=())


@dataclass(frozen=True, kw_only=True)
class Injected:
    """The lookahead of one atom: h ← h ± α‖h‖·atom at the last token of contexts, or θ ← θ ± α‖W‖·step."""

    alpha: float
    """Strength, in units of ‖h‖ (of weights, of ‖W‖)."""
    active: Moved
    """+atom, in contexts where the atom is most active."""
    inactive: Moved
    neutral: Moved
    active_minus: Moved
    """−atom, in the same contexts."""
    inactive_minus: Moved
    neutral_minus: Moved
    lens: tuple[TokenShift, ...]
    """Logit lens: tokens whose unembedding is closest to the atom; ``log_ratio`` is the logit per unit atom."""
    own_gain: float | None
    """Mean J(h) − J(h + α‖h‖·atom) on examples the atom is active on, nats: what the push gains; None without examples."""
    other_gain: float | None
    """The same on examples it is not active on."""
    own_gain_minus: float | None
    other_gain_minus: float | None
    linear_cosine: float | None
    """Cosine of the measured change of log-probabilities (active contexts, α) with the linear prediction; None of weights."""
    linear_cosine_small: float | None
    """The same at α/20: a check, near 1."""


@dataclass(frozen=True)
class Shown:
    """An example as a teacher sees it. The concept is deliberately not here."""

    prompt: str
    target: str
    foil: str | None
    weight: float
    """The atom's code on it; 0 where it is not active."""
    position: int = -1
    """Token position of the gradient; −1 where it is not known."""
    marked: str = ""
    """The token at that position, where it is not the prompt's last."""


@dataclass(frozen=True)
class Neighbour:
    """A close atom."""

    atom: int
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a teacher sees of one atom."""

    atom: int
    top: tuple[Shown, ...] = ()
    """Fitted examples with the largest codes."""
    active: tuple[Shown, ...] = ()
    """A random draw of fitted examples it is active on."""
    near: tuple[Shown, ...] = ()
    """Near misses: fitted examples that it is closest to without being active."""
    injected: Injected | None = None
    """What injecting it does; None if it is active nowhere."""
    neighbours: tuple[Neighbour, ...] = ()
    density: float = 0.0
    """Share of fitted rows that the atom is active on."""
    verdict: str = ""
    coherence: float | None = None
    stability: float | None = None

    @property
    def promoted(self) -> tuple[TokenShift, ...]:
        return self.injected.active.promoted if self.injected else ()

    @property
    def demoted(self) -> tuple[TokenShift, ...]:
        return self.injected.active.demoted if self.injected else ()

    def seen_as(self, variant: Variant) -> Evidence:
        """Only the examples (``input``), only the lookahead (``output``), or all."""
        if variant == "input":
            return replace(self, injected=None)
        if variant == "output":
            return replace(self, top=(), active=(), near=())
        return self


@dataclass(frozen=True)
class Trial:
    """A held-out example that labels are tested on."""

    prompt: str
    target: str
    other: str
    """Another target of the same prompt, on which the atom is not active: the hard negative."""
    weight: float


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """Cosine of the Δp that one lookahead shows with the Δp in held-out contexts where the atom is active."""

    active: float
    """In-context lookahead."""
    inactive: float
    neutral: float
    lens: float | None
    """Logit lens, as the change p · (lens − E_p[lens]) that it means to first order; None of weights, which have none."""
    null: float
    """In-context lookahead of another atom."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What labels of one atom are scored on; no teacher sees it."""

    atom: int
    active: tuple[Trial, ...] = ()
    """Held-out examples that the atom is strongly active on (``selection.STRONG``), each with a hard negative."""
    weak: tuple[Trial, ...] = ()
    """Held-out examples that it is active on with a smaller code."""
    inactive: tuple[Shown, ...] = ()
    """A random draw of held-out examples that it is not active on."""
    promoted: tuple[TokenShift, ...] = ()
    """Tokens that rise when it is injected into held-out examples it is active on, by Δp."""
    foretold: Foretold | None = None
    """How well each lookahead of the evidence predicts that effect."""
    concept: str = ""
    """Ground truth, where the store has it: the concept with most of the atom's code on held-out rows."""
    concept_share: float = 0.0
    """That concept's share of it."""
