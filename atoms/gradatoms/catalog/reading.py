"""What the gradient page shows of one gradient: its atoms, the model's words for it, what it moves, and where it sits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from gradatoms.attribution import Attribution, Hit
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.provenance import require_activations
from gradatoms.errors import GradientError
from gradatoms.examples import Example
from gradatoms.gradients.batches import batched
from gradatoms.gradients.residual import ResidualGradients
from gradatoms.gradients.rows import merge_rows
from gradatoms.gradients.sequences import tokenize
from gradatoms.lookahead import lookahead
from gradatoms.models import LoadedModel
from gradatoms.projector.describe import Describer

STRENGTH = 0.1
"""α of the lookaheads, in units of ‖h‖."""
TOKENS = 8
"""Tokens that a lookahead shows on each side."""
ATOMS = 6
"""Atoms of the code that are injected too, the largest first."""
DOCUMENTS = 8
"""Documents shown on each side, in weight space."""


def read_gradient(
    loaded: LoadedModel,
    atoms: Atoms,
    labels: Mapping[int, str],
    prompt: str,
    target: str,
    *,
    foil: str | None = None,
    context: str | None = None,
    describer: Describer | None = None,
) -> dict[str, Any]:
    """One gradient, taken apart.

    Args:
        describer: puts it into words; None where no projector is trained.
        context: the words are read inside this prompt instead of its own.

    Returns:
        ``norm``, ‖g‖ at the prompt's last token, nats per unit; ``terms``, the sparse code there; ``explained``, the cosine of
        push and reconstruction; ``said``, the description or None; ``moves``, tokens moved by a step of ``STRENGTH``‖h‖ along
        the push and along each atom; ``tokens``, for each prompt token its text, the share of the gradient's norm, and the
        leading atom there.

    Raises:
        UnusableExampleError: a prompt or target without tokens, or too long; GradientError: no gradient.
    """
    require_activations(atoms)
    example = Example(prompt=prompt, target=target, foil=foil)
    sequences = tokenize(loaded, [example], objective="contrast" if foil else "nll", positions="prompt")
    hook = loaded.hook(atoms.hook)
    take = ResidualGradients(loaded, [hook])
    block = merge_rows(
        [take(batch) for batch in batched(sequences[0], batch_tokens=4096, device=loaded.device)], sequences
    )
    g = block.gradients[hook.name]
    norms = np.linalg.norm(g, axis=1)
    if not np.isfinite(norms).all() or norms[-1] == 0:
        raise GradientError(
            f"expected a gradient with a direction, its norm is {norms[-1]}; choose another target or prompt"
        )
    pushes = np.asarray(-g / np.maximum(norms, 1e-30)[:, None], dtype=np.float32)
    codes = atoms.encode(pushes)
    terms = _terms(codes[[-1]].indices, codes[[-1]].data, labels)
    rebuilt = atoms.decode(codes[[-1]])[0]
    said = None
    if describer is not None:
        found = describer.described(pushes[-1:], [float(norms[-1])], [context or prompt])[0]
        said = asdict(found)
    ids = loaded.tokenizer(prompt).input_ids
    lead = [_terms(codes[[i]].indices, codes[[i]].data, labels)[:1] for i in range(len(pushes))]
    tokens = block.token.tolist()
    return {
        "norm": float(norms[-1]),
        "terms": terms,
        "explained": _cosine(rebuilt, pushes[-1]),
        "said": said,
        "moves": _moves(loaded, atoms, pushes[-1], terms[:ATOMS], list(ids)),
        "strength": STRENGTH,
        "tokens": [
            {"token": loaded.decode([t]), "norm": float(n), "share": float(n / norms.max()), "lead": lead[i]}
            for i, (t, n) in enumerate(zip(tokens, norms, strict=True))
        ],
    }


def read_weight_gradient(
    loaded: LoadedModel, index: Attribution, labels: Mapping[int, str], prompt: str, target: str
) -> dict[str, Any]:
    """What a text owes to which atoms and documents, in weight space.

    Returns:
        ``terms``, its atoms; ``documents`` that make the target likelier and those ``against``; ``looked_at`` of how many (``of``).

    Raises:
        UnusableExampleError: a prompt or target without tokens; GradientError: no gradient.
    """
    query = index.query(loaded, prompt, target)

    def told(hits: Sequence[Hit]) -> list[dict[str, Any]]:
        texts = [(h.score, index.texts[h.example]) for h in hits[:DOCUMENTS]]
        return [
            {"weight": score, "prompt": e.prompt, "marked": None, "target": e.target, "foil": e.foil}
            for score, e in texts
        ]

    return {
        "terms": [{"atom": s.atom, "label": labels.get(s.atom, ""), "weight": s.weight} for s in query.atoms],
        "documents": told(query.documents),
        "against": told(query.against),
        "looked_at": query.looked_at,
        "of": len(index.texts),
    }


def _moves(
    loaded: LoadedModel, atoms: Atoms, push: Float[np.ndarray, " D"], terms: list[dict[str, Any]], ids: list[int]
) -> list[dict[str, Any]]:
    """Tokens moved by the whole push and by each of some atoms, all at the prompt's last token."""
    directions = np.stack([push, *(atoms.W_dec[t["atom"]] for t in terms)]).astype(np.float32)
    shift = lookahead(
        loaded, loaded.hook(atoms.hook), directions, [ids], [(i, 0) for i in range(len(directions))], alpha=STRENGTH
    )
    tops = shift.top(TOKENS)

    def told(ranking: Any, row: int) -> list[dict[str, Any]]:
        return [
            {"token": loaded.decode([int(t)]), "delta_p": float(d)}
            for t, d in zip(ranking.ids[row], ranking.delta_p[row], strict=True)
            if t >= 0
        ]

    named = [{"atom": None, "label": "the whole push"}, *terms]
    return [
        {"atom": n["atom"], "label": n["label"], "kl": float(shift.kl[i])}
        | {"promoted": told(tops.promoted, i), "demoted": told(tops.demoted, i)}
        for i, n in enumerate(named)
    ]


def _terms(found: np.ndarray, weights: np.ndarray, labels: Mapping[int, str]) -> list[dict[str, Any]]:
    order = np.argsort(-weights, kind="stable")
    return [{"atom": int(found[i]), "label": labels.get(int(found[i]), ""), "weight": float(weights[i])} for i in order]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0
