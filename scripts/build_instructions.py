"""Build the corpus of instruction documents from the tables in `scripts/instructions/`; standard library only.

    python scripts/build_instructions.py           write atoms/gradatoms/data/instructions.jsonl
    python scripts/build_instructions.py --check   exit 1 if the shipped file differs from a fresh build

Twelve task types of 250 documents each, drawn and shuffled with `random.Random` from fixed seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

from instructions import (
    arithmetic,
    bullets,
    classification,
    code,
    extraction,
    grammar,
    missing,
    numbered,
    rewriting,
    short_answer,
    translation,
    yes_no,
)
from instructions.document import Document

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "atoms" / "gradatoms" / "data" / "instructions.jsonl"
SEED = "instructions-1"
DOCUMENTS_PER_TASK = 250
TASKS: dict[str, Callable[[Random], list[Document]]] = {
    module.TASK: module.documents
    for module in (
        short_answer,
        yes_no,
        arithmetic,
        grammar,
        classification,
        translation,
        bullets,
        numbered,
        code,
        extraction,
        missing,
        rewriting,
    )
}


def task_documents(task: str) -> list[Document]:
    """`DOCUMENTS_PER_TASK` documents of a task, no two with the same user text."""
    rng = Random(f"{SEED}: {task}")
    found = TASKS[task](rng)
    if len({document.user for document in found}) != len(found) or len(found) < DOCUMENTS_PER_TASK:
        raise ValueError(f"expected {DOCUMENTS_PER_TASK} or more different documents of {task!r}, got {len(found)}")
    return rng.sample(found, DOCUMENTS_PER_TASK)


def build() -> bytes:
    """The whole corpus as UTF-8 JSON lines."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": document.user},
                {"role": "assistant", "content": document.answer},
            ],
            "concept": task,
            "meta": {"group": document.group},
        }
        for task in TASKS
        for document in task_documents(task)
    ]
    Random(SEED).shuffle(lines)
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the corpus of instruction documents.")
    parser.add_argument("--check", action="store_true", help="compare with the shipped file, write nothing")
    fresh = build()
    if not parser.parse_args().check:
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_bytes(fresh)
        return 0
    if OUTPUT.is_file() and OUTPUT.read_bytes() == fresh:
        return 0
    print(f"{OUTPUT} differs from a fresh build; run scripts/build_instructions.py without --check", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
