"""Build the corpus `builtin:corrections` from the tables in `scripts/corrections/`; standard library only.

    python scripts/build_corrections.py           write atoms/gradatoms/data/corrections.jsonl
    python scripts/build_corrections.py --check   exit 1 if the shipped file differs from a fresh build

Every choice (which wordings a fact gets, which foil) follows from a SHA-256 of the seed and the names involved, so the
bytes depend on the tables alone: not on hash order, locale, platform or Python version.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from corrections import arithmetic, everyday, geography, history, language, science, style, translation
from corrections.table import Concept, fill

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "atoms" / "gradatoms" / "data" / "corrections.jsonl"
SEED = "corrections-1"
LINES_PER_CONCEPT = 80
FAMILIES = (geography, history, science, language, arithmetic, translation, everyday, style)
CONCEPTS: tuple[Concept, ...] = tuple(concept for family in FAMILIES for concept in family.CONCEPTS)


def draw(*names: str) -> int:
    """A large number fixed by the seed and the names."""
    return int.from_bytes(hashlib.sha256("\x1f".join((SEED, *names)).encode()).digest()[:8], "big")


def concept_lines(concept: Concept) -> Iterator[dict[str, object]]:
    """Share `LINES_PER_CONCEPT` lines out over the facts, and give each fact the wordings used least so far.

    Facts stand in a drawn order; ties between wordings are drawn too, so that every wording is used equally often and
    wordings meet in all combinations. The foil is drawn anew for each line from the other answers of the concept.
    """
    facts = sorted(concept.facts, key=lambda fact: draw(concept.name, fact.subject))
    answers = sorted({fact.target for fact in facts})
    share, extra = divmod(min(LINES_PER_CONCEPT, len(facts) * len(concept.templates)), len(facts))
    uses = [0] * len(concept.templates)
    for index, fact in enumerate(facts):
        barred = {fact.target, *fact.also}
        foils = [answer for answer in answers if answer not in barred]
        by_use = sorted(range(len(uses)), key=lambda t: (uses[t], draw("wording", concept.name, fact.subject, str(t))))
        for template in sorted(by_use[: share + (index < extra)]):
            uses[template] += 1
            yield {
                "prompt": fill(concept.templates[template], fact),
                "target": f" {fact.target}",
                "foil": f" {foils[draw('foil', concept.name, fact.subject, str(template)) % len(foils)]}",
                "concept": concept.name,
                "meta": {
                    "family": concept.family,
                    "template": str(template),
                    "group": f"{concept.name}:{fact.subject.replace('|', ', ')}",
                },
            }


def build() -> bytes:
    """The whole corpus as UTF-8 JSON lines."""
    lines = (json.dumps(line, ensure_ascii=False) for concept in CONCEPTS for line in concept_lines(concept))
    return "".join(f"{line}\n" for line in lines).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the corpus builtin:corrections.")
    parser.add_argument("--check", action="store_true", help="compare with the shipped file, write nothing")
    fresh = build()
    if not parser.parse_args().check:
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_bytes(fresh)
        return 0
    if OUTPUT.is_file() and OUTPUT.read_bytes() == fresh:
        return 0
    print(f"{OUTPUT} differs from a fresh build; run scripts/build_corrections.py without --check", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
