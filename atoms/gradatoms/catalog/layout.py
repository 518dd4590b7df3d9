"""A map of the atoms: two coordinates each, so that atoms that point the same way lie close."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

NEIGHBOURS_UP_TO = 4000
"""Atoms that are laid out by their neighbours (t-SNE); of more, their two main components are shown."""


def flat(W_dec: Float[np.ndarray, "K D"], *, seed: int = 0) -> Float[np.ndarray, "K 2"]:
    """Coordinates from −1 to 1.

    t-SNE (van der Maaten and Hinton 2008) of cosine distances, scikit-learn's, from a start by main components; of more than
    ``NEIGHBOURS_UP_TO`` atoms, or fewer than five, the two main components themselves.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.manifold import TSNE

    count, width = W_dec.shape
    if count < 3 or width < 3:
        found = np.zeros((count, 2)) if width < 2 else np.asarray(W_dec[:, :2], dtype=np.float64)
    else:
        start = TruncatedSVD(2, random_state=seed).fit_transform(W_dec - W_dec.mean(axis=0))
        found = start
        if 5 <= count <= NEIGHBOURS_UP_TO:
            near = TSNE(
                metric="cosine", init=1e-4 * start / (start.std() or 1.0), perplexity=min(30.0, (count - 1) / 3),
                random_state=seed, max_iter=500,
            )  # fmt: skip
            found = near.fit_transform(W_dec)
    if not count:
        return np.zeros((0, 2))
    found = found - found.mean(axis=0)
    return np.asarray(found / (np.abs(found).max() or 1.0), dtype=np.float64)
