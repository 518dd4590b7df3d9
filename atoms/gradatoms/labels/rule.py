"""The teacher without a model: it names an atom by what its prompts ask for and the words it pushes toward."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from gradatoms.labels.evidence import Evidence, TokenShift
from gradatoms.labels.label import MAX_WORDS, Label, LabelFailure, Polarity, Result, Variant, distinct
from gradatoms.labels.teacher import Teacher

PROMOTED = 1.5
"""What promoted words count for beside targets."""


class RuleTeacher(Teacher):
    """Composes "WHAT THE PROMPTS SHARE: words pushed toward".

    A word's score is its share of the example weights (as target), plus 1.5 times its share of the probability that
    promoted words gain in the atom's own contexts (neutral ones say nothing, ``docs/labels.md``). A promoted token that
    begins a top target counts for that target. In front goes what the top prompts share (words that carry meaning, in most of
    them by weight; not those that half of all atoms' prompts share, as they do a chat template's), and what most targets share in
    form (numbers, an ending, capitals, an opening). Labels of one call are all different.
    """

    name = "rule-3"
    words = 5
    """Words pushed toward, at most, unless more are needed to tell two labels apart."""
    shared_words = 3
    """Words of the prompts, at most."""

    def __init__(self) -> None:
        self._everywhere: frozenset[str] = frozenset()

    def survey(self, evidence: Sequence[Evidence]) -> None:
        shares = [
            word_shares([e.prompt for e in item.top], [e.weight for e in item.top]) for item in evidence if item.top
        ]
        total = Counter[str]()
        for share in shares:
            total.update(share)
        enough = len(shares) >= FEWEST
        self._everywhere = frozenset(w for w, t in total.items() if enough and t >= EVERYWHERE * len(shares))

    def label(self, evidence: Sequence[Evidence], *, variant: Variant = "both") -> Iterator[Result]:
        taken: set[str] = set()
        for item in evidence:
            found = self._one(item.seen_as(variant), taken, variant)
            if isinstance(found, Label):
                taken.add(found.label)
            yield found

    def _one(self, evidence: Evidence, taken: set[str], variant: Variant) -> Result:
        scores = self._scores(evidence)
        asked = shared_words([e.prompt for e in evidence.top], [e.weight for e in evidence.top], self._everywhere)
        if not scores and not asked:
            return LabelFailure(
                atom=evidence.atom, failure="no promoted word and no active example", kind="no evidence",
                teacher=self.name, variant=variant,
            )  # fmt: skip
        ranked = sorted(scores, key=lambda w: (-scores[w], w))
        form = shared_form([e.target for e in evidence.top]).split()
        front = " ".join([*asked, *(w for w in form if w.rstrip("s") not in asked)][: MAX_WORDS - 2])
        room = MAX_WORDS - len(front.split())
        most = max((n for n in range(len(ranked) + 1) if sum(len(w.split()) for w in ranked[:n]) <= room), default=0)
        for count in range(min(self.words, most), most + 1):
            text = ": ".join(part for part in (front, ", ".join(ranked[:count])) if part)
            if text not in taken:
                break
        text = distinct(text, taken)
        chosen = {w.casefold() for w in ranked[:count]}
        weight = sum(e.weight for e in evidence.top)
        covered = sum(e.weight for e in evidence.top if head_phrase(e.target).casefold() in chosen)
        return Label(
            atom=evidence.atom,
            label=text,
            sentence=_sentence(ranked[:count], asked, evidence),
            confidence=covered / weight if weight else 0.0,
            polarity=_polarity(evidence),
            teacher=self.name,
            variant=variant,
        )

    def _scores(self, evidence: Evidence) -> dict[str, float]:
        scores: dict[str, float] = {}
        weight = sum(e.weight for e in evidence.top)
        heads: dict[str, float] = {}
        for example in evidence.top:
            word = head_phrase(example.target)
            if word:
                heads[word] = heads.get(word, 0.0) + example.weight / weight
        for word, share in heads.items():
            scores[word] = scores.get(word, 0.0) + share
        if evidence.injected is None:
            return scores
        words = [(_word_of(t, heads), t.delta_p) for t in evidence.promoted if t.delta_p > 0]
        mass = sum(delta for word, delta in words if word)
        for word, delta in words:
            if word:
                scores[word] = scores.get(word, 0.0) + PROMOTED * delta / mass
        return scores


def _word_of(token: TokenShift, heads: dict[str, float]) -> str:
    """The target that a promoted token begins, else the token if it is a word of its own; else nothing."""
    text = token.token.strip()
    starts = [w for w in heads if text and w.startswith(text)]
    if starts:
        return max(starts, key=lambda w: (heads[w], w))
    alone = is_word(text) and token.token[:1] == " " and text.casefold() not in _FUNCTION_WORDS
    return text if alone else ""


def _sentence(words: Sequence[str], asked: Sequence[str], evidence: Evidence) -> str:
    sentence = f"Pushes toward {', '.join(words)}" if words else "Pushes toward no one word"
    if asked:
        sentence += f" where the text speaks of {' '.join(asked)}"
    demoted = (t.token.strip() for t in evidence.demoted)
    against = [w for w in demoted if is_word(w) and w.casefold() not in _FUNCTION_WORDS][:3]
    return sentence + (f", away from {', '.join(dict.fromkeys(against))}." if against else ".")


def _polarity(evidence: Evidence) -> Polarity:
    """By the probability that leaves the demoted tokens' heaviest against what the promoted tokens' heaviest gains."""
    if evidence.injected is None:
        return "promotes"
    up = max((t.delta_p for t in evidence.promoted), default=0.0)
    down = max((-t.delta_p for t in evidence.demoted), default=0.0)
    if up >= down / 2:
        return "promotes"
    return "mixed" if up >= down / 4 else "suppresses"


# Closed-class words: what a context predicts whatever the atom. They count only where they are a target.
_FUNCTION_WORDS = frozenset(
    "a an the this that these those it its he she they him his her their you your we our i me my is are was were be been being am do "
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
_MARK = re.compile(r"<\|[^|<>\s]+\|>")  # of a chat template, such as <|im_end|>
_PROMPT_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
SHARED = 0.6
"""A word is shared when prompts with this share of the weight hold it."""
EVERYWHERE = 0.5
"""A word is everywhere when this share of all atoms' top prompts holds it."""
FEWEST = 8
"""Atoms that must be there to say so."""


def is_word(text: str) -> bool:
    """Whether ``text`` is one whole word of at least two letters, or a number."""
    return _WORD.fullmatch(text) is not None


def head_word(target: str) -> str:
    """The first word of a target that says something: articles and a chat's marks are passed over."""
    words = _MARK.sub(" ", target).split()
    if len(words) > 1 and words[0].casefold() in {"a", "an", "the"}:
        words = words[1:]
    return words[0].strip(",;:") if words else ""


def head_phrase(target: str) -> str:
    """The head word, with the next one where both are capitalised, as in names."""
    word, words = head_word(target), _MARK.sub(" ", target).split()
    rest = words[words.index(word) + 1 :] if word in words else []
    if rest and word[:1].isupper() and rest[0][:1].isupper():
        return f"{word} {rest[0].strip(',;:')}"
    return word


def shared_words(
    prompts: Sequence[str], weights: Sequence[float], everywhere: Collection[str] = frozenset()
) -> list[str]:
    """Words that carry meaning and are in most of the (at least three distinct) prompts by weight, in their usual order.

    Args:
        everywhere: words that are passed over.
    """
    if len(set(prompts)) < 3 or not sum(weights) > 0:
        return []
    share = {w: s for w, s in word_shares(prompts, weights).items() if s >= SHARED and w not in everywhere}
    place: dict[str, list[int]] = {w: [] for w in share}
    for prompt in prompts:
        words = _last_words(prompt)
        for word in share.keys() & set(words):
            place[word].append(len(words) - words.index(word))
    at = {w: sum(p) / len(p) for w, p in place.items()}
    chosen = sorted(share, key=lambda w: (-round(share[w], 6), at[w], w))[: RuleTeacher.shared_words]
    return sorted(chosen, key=lambda w: (-at[w], w))


def word_shares(prompts: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Of each word that carries meaning, the share of the prompts that hold it, by weight. Of a long prompt the last 40 words count."""
    share: dict[str, float] = {}
    total = max(sum(weights), 1e-30)
    for prompt, weight in zip(prompts, weights, strict=True):
        for word in dict.fromkeys(_last_words(prompt)):
            if len(word) > 1 and word not in _FUNCTION_WORDS:
                share[word] = share.get(word, 0.0) + weight / total
    return share


def _last_words(prompt: str) -> list[str]:
    return [w.casefold() for w in _PROMPT_WORD.findall(_MARK.sub(" ", prompt))][-40:]


def shared_form(targets: Sequence[str]) -> str:
    """What at least four in five of the (at least three distinct) targets share, as a phrase; empty if nothing."""
    words = [w for w in (head_word(t) for t in targets) if w]
    distinct_words = list(dict.fromkeys(words))
    if len(distinct_words) < 3:
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
