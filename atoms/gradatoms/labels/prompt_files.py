"""Prompts are files in the package. Each has a system part and a template, and a digest that labels record."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_SEPARATOR = "\n=== user\n"


@dataclass(frozen=True)
class PromptFile:
    """A prompt: what the model is told, and the template of what it is asked."""

    version: str
    """File name and the first 8 hex digits of its SHA-256, such as ``label-1@0a1b2c3d``."""
    system: str
    template: str
    """With places such as ``{evidence}``."""

    def fill(self, **parts: str) -> str:
        """The template with its places filled. What is put in is not read for places again."""
        return re.sub(r"\{(\w+)\}", lambda place: parts[place[1]], self.template)


@cache
def load_prompt(name: str) -> PromptFile:
    """The prompt file called ``name``, such as ``label-1``."""
    data = (files("gradatoms.labels") / "prompts" / f"{name}.txt").read_bytes()
    system, template = data.decode("utf-8").split(_SEPARATOR)
    return PromptFile(f"{name}@{hashlib.sha256(data).hexdigest()[:8]}", system.strip(), template.strip())


def quoted(text: str) -> str:
    """``text`` as a JSON string: data, on one line, that cannot end its own quotes nor, in most chat formats, its turn."""
    found = json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)
    for mark in ("\u2028", "\u2029", "\u202e", "<|"):
        found = found.replace(mark, f"\\u{ord(mark[0]):04x}{mark[1:]}")
    return found


def quoted_end(text: str, most: int) -> str:
    """The last ``most`` characters of ``text``, quoted."""
    return quoted(text if len(text) <= most else "…" + text[-most:])


def quoted_start(text: str, most: int) -> str:
    """The first ``most`` characters of ``text``, quoted."""
    return quoted(text if len(text) <= most else text[:most] + "…")
