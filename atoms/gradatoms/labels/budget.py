"""What requests cost, and a limit that is checked before each is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gradatoms.errors import ConfigError

_OVERHEAD = 32
"""Tokens that a chat template adds around two messages, at most, in the templates we know."""


def count_tokens(*texts: str) -> int:
    """An estimate of the tokens of a request that is rather too high: a token for three bytes, and the template's.

    English has about four bytes a token. Rare scripts and long numbers have fewer; ``Budget`` learns from what servers report.
    """
    return math.ceil(sum(len(text.encode("utf-8", "replace")) for text in texts) / 3) + _OVERHEAD


@dataclass(frozen=True)
class Prices:
    """What a model costs."""

    input_usd: float
    """US dollars for a million input tokens."""
    output_usd: float

    def __post_init__(self) -> None:
        if not (0 <= self.input_usd < math.inf and 0 <= self.output_usd < math.inf):
            raise ConfigError(f"expected prices of at least 0, got {self.input_usd} and {self.output_usd}")

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars."""
        return (input_tokens * self.input_usd + output_tokens * self.output_usd) / 1e6


@dataclass(frozen=True)
class Estimate:
    """What asking would take if each answer were as long as it may be and none had to be asked for again."""

    requests: int
    """Requests that would be sent."""
    cached: int
    """Questions that the cache answers."""
    input_tokens: int
    output_tokens: int
    usd: float | None
    """None where no prices were given."""


@dataclass
class Budget:
    """A limit in dollars, tokens or both. What a request may cost at most is set aside before it is sent.

    Attributes:
        spent_tokens: reported by the server, or what was set aside where a request may have been charged unseen.
        spent_usd: the same in dollars; 0 without prices.
    """

    usd: float | None = None
    tokens: int | None = None
    prices: Prices | None = None
    spent_tokens: int = 0
    spent_usd: float = 0.0
    exhausted: bool = False
    """Once a request did not fit; none is sent after it."""
    _held: list[tuple[int, int]] = field(default_factory=list)
    _scale: float = 1.0
    """Largest ratio of reported to estimated input tokens."""

    def __post_init__(self) -> None:
        if self.usd is not None and self.prices is None:
            raise ConfigError(
                "expected prices with a budget in dollars, got none; give the model's prices, or a budget in tokens"
            )
        for name, limit in (("usd", self.usd), ("tokens", self.tokens)):
            if limit is not None and not 0 <= limit < math.inf:
                raise ConfigError(f"expected a budget of at least 0 {name}, got {limit}")

    def hold(self, input_tokens: int, output_tokens: int) -> tuple[int, int] | None:
        """Set aside what a request may cost; None where it does not fit beside what is spent and set aside now.

        ``exhausted`` then says whether waiting for requests under way can help.
        """
        need = (math.ceil(input_tokens * self._scale), output_tokens)
        held = [*self._held, need]
        tokens = self.spent_tokens + sum(i + o for i, o in held)
        usd = self.spent_usd + sum(self._cost(i, o) for i, o in held)
        if (
            self.exhausted
            or (self.tokens is not None and tokens > self.tokens)
            or (self.usd is not None and usd > self.usd)
        ):
            self.exhausted = self.exhausted or not self._held
            return None
        self._held.append(need)
        return need

    def charge(self, held: tuple[int, int], input_tokens: int | None, output_tokens: int | None) -> None:
        """Book a request that was answered, or may have been: what the server reports, else what was set aside."""
        self._held.remove(held)
        if input_tokens is not None:
            self._scale = max(self._scale, self._scale * input_tokens / max(1, held[0]))
        i = held[0] if input_tokens is None else input_tokens
        o = held[1] if output_tokens is None else output_tokens
        self.spent_tokens += i + o
        self.spent_usd += self._cost(i, o)

    def release(self, held: tuple[int, int]) -> None:
        """Give back what was set aside for a request that the server did not answer."""
        self._held.remove(held)

    def reason(self) -> str:
        """Why nothing more is sent."""
        limits = [f"{self.tokens} tokens"] if self.tokens is not None else []
        limits += [f"${self.usd:.4f}"] if self.usd is not None else []
        spent = f"{self.spent_tokens} tokens" + (f", ${self.spent_usd:.4f}" if self.prices else "")
        return f"the next request does not fit the budget of {' and '.join(limits)} ({spent} spent); raise it and run again"

    def _cost(self, input_tokens: int, output_tokens: int) -> float:
        return self.prices.cost(input_tokens, output_tokens) if self.prices else 0.0
