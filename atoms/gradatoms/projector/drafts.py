"""What the soft tokens of a term look like: a guess of the text the model will write, which it then need only check.

    label = argmax_y mean_k û_k·E(y_k)        over the tokens of label y and the one that begins a weight
    weight = argmax_w mean_k û_k·E(w_k)       over the tokens of a weight that stand behind it

E being the normalised embeddings. A guess decides nothing: ``writing.write`` keeps what the model would have written anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch.nn import functional as F

from gradatoms.models import LoadedModel
from gradatoms.projector.prompt import slot_ids, term_ids, token_ids, weight_ids
from gradatoms.projector.text import Phrasing


class Drafts:
    """Drafts of terms that name one of ``labels``, or no clear pressure, in K = ``soft_tokens`` soft tokens."""

    def __init__(self, loaded: LoadedModel, labels: Sequence[str], soft_tokens: int) -> None:
        self._loaded, self._labels = loaded, [*labels, None]
        self._weights = [weight_ids(loaded, n / 10) for n in range(1, 11)]
        begins, width = self._weights[0][0], len(self._weights[0])
        ids, self._places = [], []
        for label in labels:
            own = token_ids(loaded, f" {label}")[: max(0, soft_tokens - width)]
            self._places.append(len(own))
            ids.append([*own, begins][:soft_tokens])
        ids.append(slot_ids(loaded, None, 0.0, soft_tokens))
        used = sorted({i for row in ids for i in row} | {i for row in self._weights for i in row})
        column = {token: i for i, token in enumerate(used)}
        device = loaded.device
        self._vocabulary = F.normalize(loaded.embeddings[torch.tensor(used, device=device)].float(), dim=1)
        self._slots = torch.tensor([[column[i] for i in row] + [0] * (soft_tokens - len(row)) for row in ids]).to(
            device
        )
        self._lengths = torch.tensor([len(row) for row in ids], device=device)
        self._numbers = torch.tensor([[column[i] for i in row] for row in self._weights], device=device)

    def __call__(self, soft: Float[torch.Tensor, "R K M"], phrasing: Phrasing) -> list[list[int]]:
        """Token ids of the guessed term of each row, with the line break that ends it."""
        k = torch.arange(soft.shape[1], device=soft.device)
        real = k < self._lengths[:, None]
        found = []
        for row in soft.float() @ self._vocabulary.T:
            best = int(((row[k, self._slots] * real).sum(1) / self._lengths).argmax())
            label, weight = self._labels[best], 0.0
            if label is not None:
                behind = k[self._places[best] :][: self._numbers.shape[1]]
                weight = (int(row[behind, self._numbers[:, : len(behind)]].sum(1).argmax()) + 1) / 10
            found.append(term_ids(self._loaded, label, weight, phrasing))
        return found
