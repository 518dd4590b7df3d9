"""Sparse autoencoders on pushes, trained by SAELens.

Pushes have unit norm, so a coordinate is about 1/√d; training runs on √d · (p − μ), and the scale and μ are folded back
into the weights afterwards, which TopK allows exactly: encode(s·x) = s·encode(x) when the encoder bias is scaled along.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float

from gradatoms.dictionary.base import Atoms, Coder, FitConfig
from gradatoms.dictionary.coding import Codes, top_k
from gradatoms.dictionary.pushes import Pushes
from gradatoms.errors import ConfigError
from gradatoms.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class TopKConfig(FitConfig):
    """Settings of a TopK sparse autoencoder."""

    method: ClassVar[str] = "topk"

    epochs: int = 100
    k: int = 8
    """Atoms kept a row."""
    lr: float = 1e-3
    """Adam's learning rate; falls linearly to a tenth over the last fifth of the steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.n_atoms:
            raise ConfigError(f"expected k from 1 to n_atoms ({self.n_atoms}), got {self.k}")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"expected lr (a learning rate) above 0, got {self.lr}")


@dataclass(frozen=True)
class TopKCoder(Coder):
    """Codes by one encoder product: the k largest of x·W_enc + b_enc, negatives zero."""

    W_enc: Float[np.ndarray, "D K"]
    b_enc: Float[np.ndarray, " K"]
    k: int

    def encode(self, X: Float[np.ndarray, "N D"]) -> Codes:
        return top_k(X @ self.W_enc + self.b_enc, self.k)


def fit_topk(pushes: Pushes, config: TopKConfig, *, progress: Progress = silent) -> Atoms:
    """Learn atoms from ``pushes`` with SAELens' TopK trainer."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d, mean = pushes.d, pushes.mean()
    batch_size = min(config.batch_size, len(pushes))
    steps = max(1, config.epochs * len(pushes) // batch_size)
    scale = float(np.sqrt(d))

    def rows() -> Iterator[torch.Tensor]:
        epoch, done = 0, 0
        while True:
            for batch in pushes.batches(batch_size, seed=config.seed + epoch):
                if len(batch) == batch_size:
                    done += 1
                    progress("fit", min(done, steps), steps)
                    yield torch.from_numpy((batch - mean) * scale)
            epoch += 1

    torch.manual_seed(config.seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=config.n_atoms, k=config.k))
    trainer_config = SAETrainerConfig(
        total_training_samples=steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=config.lr,
        lr_end=config.lr / 10,
        lr_warm_up_steps=min(50, steps // 10),
        lr_decay_steps=steps // 5,
        dead_feature_window=max(10, steps // 40),
    )
    SAETrainer(trainer_config, sae, rows()).fit()
    with torch.no_grad():
        sae.fold_W_dec_norm()
        W_dec = sae.W_dec.numpy().copy()
        W_enc, b_enc, b_dec = sae.W_enc.numpy().copy(), sae.b_enc.numpy() / scale, sae.b_dec.numpy() / scale
    return Atoms(W_dec, mean + b_dec, TopKCoder(W_enc, b_enc, config.k), pushes.hook)
