"""The sparse parts of a TopK training step in plain torch: what runs on a GPU, and what ``topk_kernels.py`` must equal.

Shapes as there: B rows, K atoms, D coordinates, k active atoms a row; an index of −1 is an empty place.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

_BYTES = 2**28
"""Gathered weights that are held at a time."""


def decode(
    x: Float[torch.Tensor, "B D"],
    index: Int[torch.Tensor, "B k"],
    W_enc: Float[torch.Tensor, "K D"],
    b_enc: Float[torch.Tensor, " K"],
    W_dec: Float[torch.Tensor, "K D"],
    *,
    clip: bool,
) -> tuple[Float[torch.Tensor, "B k"], Float[torch.Tensor, "B D"]]:
    """code[i, s] = x_i·W_enc[a] + b_enc[a] for the chosen atoms a, at least 0 if ``clip``; and Σ_s code·W_dec[a]."""
    place = index.clamp_min(0).long()
    code = _dots(x, place, W_enc) + b_enc[place]
    code = torch.where(index < 0, 0, code.clamp_min(0) if clip else code)
    return code, F.embedding_bag(place, W_dec, per_sample_weights=code, mode="sum")


def pull_back(
    d_out: Float[torch.Tensor, "B D"],
    index: Int[torch.Tensor, "B k"],
    code: Float[torch.Tensor, "B k"],
    W_dec: Float[torch.Tensor, "K D"],
) -> Float[torch.Tensor, "B k"]:
    """d_code[i, s] = d_out_i·W_dec[a] where the code is not zero, else 0."""
    return torch.where(code != 0, _dots(d_out, index.clamp_min(0).long(), W_dec), 0)


def accumulate(
    x: Float[torch.Tensor, "B D"],
    d_out: Float[torch.Tensor, "B D"],
    index: Int[torch.Tensor, "B k"],
    code: Float[torch.Tensor, "B k"],
    d_code: Float[torch.Tensor, "B k"],
    g_enc: Float[torch.Tensor, "K D"],
    g_bias: Float[torch.Tensor, " K"],
    g_dec: Float[torch.Tensor, "K D"],
) -> None:
    """Add to the gradients of the weights: Σ d_code·x, Σ d_code and Σ code·d_out over each atom's entries."""
    k, n_atoms = index.shape[1], len(g_enc)
    entry = torch.nonzero((code != 0).flatten())[:, 0]
    atom = index.flatten()[entry].long()
    order = torch.argsort(atom, stable=True)
    entry, atom = entry[order], atom[order]
    start = torch.searchsorted(atom, torch.arange(n_atoms + 1, device=atom.device))
    rows = entry // k
    for weights, values, out in ((d_code, x, g_enc), (code, d_out, g_dec)):
        entries = weights.flatten()[entry]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            sparse = torch.sparse_csr_tensor(start, rows, entries, (n_atoms, len(x)), check_invariants=False)
        out += sparse @ values
    g_bias.index_add_(0, atom, d_code.flatten()[entry])


def _dots(u: torch.Tensor, index: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """u_i·W[index[i, s]], gathering a bounded number of atoms at a time."""
    rows = max(1, _BYTES // (index.shape[1] * W.shape[1] * 4))
    return torch.cat([
        torch.einsum("bd,bkd->bk", u[i : i + rows], W[index[i : i + rows]]) for i in range(0, len(u), rows)
    ]) if len(u) else u.new_zeros(index.shape)  # fmt: skip
