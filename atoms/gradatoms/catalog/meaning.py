"""Search by meaning: cosines of sentence embeddings of the labels, which are made as they are first needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from gradatoms.catalog.index import Found, Index, Query

Embed = Callable[[Sequence[str]], Float[np.ndarray, "N E"]]
SECONDS = 5.0
"""How long one search may read labels before it answers with those that it knows."""
CHUNK = 512
"""Labels that are read at once."""


class Meanings:
    """Embeddings of an index's labels, kept in its file in float16; safe to use from several threads.

    Args:
        embed: unit embeddings of texts.
        name: of the model that embeds.
    """

    def __init__(self, index: Index, embed: Embed, name: str) -> None:
        self._index, self._embed, self._key = index, embed, f"embeddings of {name}"
        self._lock = threading.Lock()
        labelled = index.names()
        self._atoms = np.asarray([atom for atom, _ in labelled], dtype=np.int64)
        self._labels = [label for _, label in labelled]
        kept = index.kept(self._key)
        width = self._embed([""]).shape[1]
        self._vectors = np.frombuffer(kept or b"", np.float16).reshape(-1, width).astype(np.float32)

    def search(self, query: Query, *, seconds: float | int = SECONDS) -> Found:
        """The atoms whose labels mean most like the query's text, by cosine (``similarity``); its filters hold.

        Args:
            seconds: how long labels that no search has read yet may be read; ``unread`` of the answer are left for the next.
        """
        with self._lock:
            self._read(seconds)
            vectors = self._vectors
        scores = vectors @ self._embed([query.text])[0]
        atoms = self._atoms[: len(vectors)]
        order = np.argsort(-scores, kind="stable")
        order = order[np.isin(atoms[order], self._index.numbers(replace(query, text="")))]
        chosen = order[query.offset :][: query.limit if query.limit >= 0 else None]
        rows = self._index.rows(int(atoms[i]) for i in chosen)
        told = [r | {"similarity": float(scores[i])} for r, i in zip(rows, chosen, strict=True)]
        return Found(told, len(order), unread=len(self._labels) - len(vectors))

    def _read(self, seconds: float | int) -> None:
        known, end = len(self._vectors), time.monotonic() + seconds
        parts = [self._vectors]
        for start in range(known, len(self._labels), CHUNK):
            parts.append(self._embed(self._labels[start : start + CHUNK]))
            if time.monotonic() >= end:
                break
        if len(parts) > 1:
            self._vectors = np.concatenate(parts)
            self._index.keep(self._key, self._vectors.astype(np.float16).tobytes())
