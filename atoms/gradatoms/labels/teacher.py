"""Teachers turn evidence into a label. ``rule`` needs no model: it names an atom by the words it pushes toward."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from gradatoms.errors import ConfigError
from gradatoms.labels.evidence import Evidence

MAX_WORDS = 8


@dataclass(frozen=True)
class Label:
    """A name for an atom, of at most eight words, and how sure the teacher is."""

    atom: int
    label: str
    sentence: str
    confidence: float
    """0 to 1; for ``rule``, the share of top examples whose target the label's words cover."""
    teacher: str


@dataclass(frozen=True)
class LabelFailure:
    """Why an atom has no label; never shown as one."""

    atom: int
    failure: str
    teacher: str


class Teacher(ABC):
    """Something that words the shift an atom causes."""

    name: ClassVar[str]
    version: ClassVar[str]

    @abstractmethod
    def label(self, evidence: Evidence, taken: frozenset[str]) -> Label | LabelFailure:
        """A label that is not in ``taken``, or why there is none."""


class RuleTeacher(Teacher):
    """Composes the label from the words that the lookahead promotes and the targets of the top examples.

    A word's score is its share of the example weights (as target), plus its share of the promoted probability in active
    contexts, plus a tenth of its share in neutral contexts. A promoted token that begins a top target counts for that
    target. What most targets share (numbers, an ending, capitals, an opening) goes in front.
    """

    name = "rule"
    version = "rule-1"
    words = 3

    def label(self, evidence: Evidence, taken: frozenset[str]) -> Label | LabelFailure:
        scores = self._scores(evidence)
        if not scores:
            return LabelFailure(evidence.atom, "no promoted word and no active example", self.version)
        ranked = sorted(scores, key=lambda w: (-scores[w], w))
        shared = shared_form([e.target for e in evidence.examples])
        for count in range(self.words - bool(shared), MAX_WORDS - len(shared.split()) + 1):
            text = (f"{shared}: " if shared else "") + ", ".join(ranked[:count])
            if text not in taken or count >= len(ranked):
                break
        serial = 2
        unique = text
        while unique in taken:
            unique, serial = f"{text} ({serial})", serial + 1
        chosen = {w.casefold() for w in ranked[:count]}
        weight = sum(e.weight for e in evidence.examples)
        covered = sum(e.weight for e in evidence.examples if head_word(e.target).casefold() in chosen)
        sentence = f"Pushes toward {', '.join(ranked[:count])}"
        demoted = (t.token.strip() for t in evidence.demoted)
        against = [w for w in demoted if is_word(w) and w.casefold() not in _FUNCTION_WORDS][:3]
        sentence += f", away from {', '.join(dict.fromkeys(against))}." if against else "."
        return Label(evidence.atom, unique, sentence, covered / weight if weight else 0.0, self.version)

    def _scores(self, evidence: Evidence) -> dict[str, float]:
        scores: dict[str, float] = {}
        weight = sum(e.weight for e in evidence.examples)
        heads: dict[str, float] = {}
        for example in evidence.examples:
            word = head_word(example.target)
            if word:
                heads[word] = heads.get(word, 0.0) + example.weight / weight
        for word, share in heads.items():
            scores[word] = scores.get(word, 0.0) + share
        for tokens, factor in ((evidence.promoted, 1.0), (evidence.neutral_promoted, 0.1)):
            mass = sum(t.delta_p for t in tokens if t.delta_p > 0)
            for token in tokens:
                text = token.token.strip()
                if token.delta_p <= 0 or not text:
                    continue
                starts = [w for w in heads if w.startswith(text)]
                if starts:
                    word = max(starts, key=lambda w: (heads[w], w))
                elif is_word(text) and token.token[:1] == " " and text.casefold() not in _FUNCTION_WORDS:
                    word = text
                else:
                    continue
                scores[word] = scores.get(word, 0.0) + factor * token.delta_p / mass
        return scores


# Closed-class words: what a context predicts whatever the atom. They count only where they are a target.
_FUNCTION_WORDS = frozenset(
    "a an the this that these those it its he she they them his her their you your we our i me my is are was were be been being am do "
    "does did has have had of in on at to from by for with as and or but not no nor if so than then there here what which who whom "
    "whose when where how why all any both each more most other some such only own same too very can will just should now also into "
    "about over after before between out up down off again once one two another either called known following used".split()
)

_PATTERNS = {
    "years": re.compile(r"1\d{3}|20\d\d"),
    "numbers": re.compile(r"\d+"),
    "dates": re.compile(r"\d{4}-\d\d-\d\d"),
    "times": re.compile(r"\d\d?:\d\d"),
}

_WORD = re.compile(r"[^\W_]{2,}|\d+")


def is_word(text: str) -> bool:
    """Whether ``text`` is one whole word of at least two letters, or a number."""
    return _WORD.fullmatch(text) is not None


def head_word(target: str) -> str:
    """The first word of a target that says something: articles are passed over."""
    words = target.split()
    if len(words) > 1 and words[0].casefold() in {"a", "an", "the"}:
        words = words[1:]
    return words[0].strip(",;:") if words else ""


def shared_form(targets: list[str]) -> str:
    """What at least four in five of the (at least three distinct) targets share, as a phrase; empty if nothing."""
    words = [w for w in (head_word(t) for t in targets) if w]
    distinct = list(dict.fromkeys(words))
    if len(distinct) < 3:
        return ""
    need = 0.8 * len(words)
    for name, pattern in _PATTERNS.items():
        if sum(pattern.fullmatch(w) is not None for w in words) >= need:
            return name
    if sum(w[0] in ".<" for w in words) >= need:
        return f"text starting with {Counter(w[0] for w in words).most_common(1)[0][0]}"
    if sum(w.isupper() and len(w) > 1 for w in words) >= need:
        return "capital letters"
    letters = [w for w in words if w.isalpha() and len(w) >= 4]
    for length in (4, 3, 2):
        endings = Counter(w[-length:] for w in letters)
        if endings and endings.most_common(1)[0][1] >= need:
            return f"words in -{endings.most_common(1)[0][0]}"
    return ""


TEACHERS: dict[str, type[Teacher]] = {RuleTeacher.name: RuleTeacher}


def make_teacher(name: str) -> Teacher:
    """The teacher called ``name``.

    Raises:
        ConfigError: no such teacher; the message lists them.
    """
    if name not in TEACHERS:
        raise ConfigError(f"expected a teacher of {', '.join(TEACHERS)}, got {name!r}")
    return TEACHERS[name]()
