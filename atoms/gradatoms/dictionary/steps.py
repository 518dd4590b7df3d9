"""What a reconstructed gradient step still does, measured on the model."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes
from gradatoms.errors import ModelMismatchError
from gradatoms.gradients.sequences import TokenSequence, tokenize
from gradatoms.gradients.task import example_of
from gradatoms.lookahead import stepped
from gradatoms.metric import Metric
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent
from gradatoms_store import Store

ETA = 0.1
"""Length of a gradient step, in units of ‖h‖."""


def step_metrics(
    atoms: Atoms,
    store: Store,
    loaded: LoadedModel,
    rows: Int[np.ndarray, " N"],
    P: Float[np.ndarray, "N D"],
    codes: Codes,
    *,
    most: int,
    seed: int,
    progress: Progress = silent,
) -> dict[str, Metric]:
    """How much of a real gradient step its reconstruction keeps: of its gain, and of its shift of the next token.

    step_recovered = Σ (J(h) − J(h + η‖h‖ p̂)) / Σ (J(h) − J(h + η‖h‖ p)), sums over rows, p̂ = decode(codes)/‖·‖, η = 0.1.
    step_kl = mean KL(next token after p ‖ after p̂) in nats. The null of both is a random direction; the notes give the
    mean push as well.

    Args:
        rows: global row numbers, with their pushes ``P`` and codes.
        most: rows at most, chosen by seed.

    Raises:
        ModelMismatchError: ``loaded`` is not the model of the store.
    """
    if not loaded.fingerprint.same_weights(store.header.model):
        raise ModelMismatchError(
            f"expected the model of the store ({store.header.model.get('name')}, {store.header.model.get('sha')}), got "
            f"{loaded.fingerprint.name} ({loaded.fingerprint.sha}); load that model"
        )
    rng = np.random.default_rng(seed)
    chosen = np.arange(len(rows)) if len(rows) <= most else np.sort(rng.choice(len(rows), most, replace=False))
    branches, owner = branches_of(store, loaded, rows[chosen])
    noise = rng.standard_normal((len(chosen), P.shape[1])).astype(np.float32)
    mean = np.broadcast_to(atoms.b_dec, noise.shape)
    directions = (P[chosen], atoms.decode(codes[chosen]), noise, mean)
    steps = np.stack([unit(v) for v in directions], axis=1)[owner]
    found = stepped(loaded, loaded.hook(atoms.hook), branches, steps, eta=ETA, progress=progress)
    gain = (found.objective[:, :1] - found.objective[:, 1:]).sum(axis=0) / len(chosen)
    full, kept, random, mean_push = gain
    plain, _, kl, random_kl, mean_kl = found.kl.mean(axis=0)
    word = "logits" if store.header.objective == "logit" else "nats"
    return {
        "step_recovered": Metric(
            value=float(kept / full), null=float(random / full), unit="share of the step's gain", better="higher",
            n=len(chosen),
            note=f"step of {ETA}·‖h‖ gains {full:.2f} {word}; null: random direction; the mean push alone keeps {mean_push / full:.2f}",
        ),
        "step_kl": Metric(
            value=float(kl), null=float(random_kl), unit="nats", better="lower", n=len(chosen),
            note=f"KL from the next token after a real step to that after its reconstruction; null: random direction; "
            f"mean push {mean_kl:.2f}, no step {plain:.2f}",
        ),
    }  # fmt: skip


def branches_of(
    store: Store, loaded: LoadedModel, rows: Int[np.ndarray, " N"]
) -> tuple[list[tuple[TokenSequence, int]], Int[np.ndarray, " B"]]:
    """The token sequences in which each row's position is stepped, and which row each belongs to."""
    wanted = set(store.rows["example"][rows].tolist())
    examples = {record.id: example_of(record) for record in store.iter_examples() if record.id in wanted}
    ordered = [examples[int(e)] for e in store.rows["example"][rows]]
    sequences = tokenize(loaded, ordered, objective=store.header.objective, positions=store.header.positions)
    branches, owner = [], []
    for i, (row, found) in enumerate(zip(rows, sequences, strict=True)):
        position = int(store.rows["position"][row])
        for sequence in found:
            if position in sequence.rows:
                branches.append((sequence, position))
                owner.append(i)
    return branches, np.asarray(owner)


def unit(rows: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Rows of norm 1; a zero row stays zero."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)
