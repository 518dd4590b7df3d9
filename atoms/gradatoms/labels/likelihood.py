"""A judge that is a language model: how much likelier it finds an example when it has read the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from gradatoms.gradients.batches import by_budget, pad
from gradatoms.gradients.sequences import TokenSequence
from gradatoms.hooking import fast_math, predict_at
from gradatoms.labels.judges import Item, Judge
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent


class LikelihoodJudge(Judge):
    """How much likelier a language model finds the item's target when it has read the label; needs no further package.

    With small models it is the weaker judge (``docs/labels.md``).

    fit = log p(target ∣ "label" then prompt) − log p(target ∣ prompt), nats, summed over the target's tokens.
    """

    template = "Hint: {label}.\n{prompt}"
    plain = "Hint: none.\n{prompt}"

    def __init__(self, loaded: LoadedModel, *, batch_tokens: int = 4096) -> None:
        self.name = f"likelihood:{loaded.fingerprint.name}"
        self._loaded, self._batch_tokens = loaded, batch_tokens

    def fit(
        self,
        labels: Sequence[str],
        items: Sequence[Item],
        pairs: Sequence[tuple[int, int]],
        *,
        progress: Progress = silent,
    ) -> Float[np.ndarray, " P"]:
        used = sorted({j for _, j in pairs})
        alone = {j: (self.plain.format(prompt=items[j].prompt), items[j].target) for j in used}
        told = [(self.template.format(label=labels[i], prompt=items[j].prompt), items[j].target) for i, j in pairs]
        values = self._log_p([*alone.values(), *told], progress)
        base = dict(zip(alone, values, strict=False))
        return values[len(alone) :] - np.asarray([base[j] for _, j in pairs])

    @torch.no_grad()
    def _log_p(self, texts: Sequence[tuple[str, str]], progress: Progress) -> Float[np.ndarray, " N"]:
        """Σ log p of each text's second part after its first, nats."""
        tokenizer, most = self._loaded.tokenizer, self._loaded.max_tokens
        prompts = tokenizer([p for p, _ in texts]).input_ids if texts else []
        targets = tokenizer([t for _, t in texts], add_special_tokens=False).input_ids if texts else []
        sequences, owners = list[TokenSequence](), list[list[int]]()
        shared: dict[tuple[int, ...], int] = {}
        for n, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            target = target[: most - 1]
            before = tuple(prompt[-(most - len(target)) :])
            if len(target) == 1 and before in shared:  # another next token after the same words
                i = shared[before]
                sequences[i] = replace(sequences[i], terms=(*sequences[i].terms, (len(before) - 1, target[0], 1.0)))
                owners[i].append(n)
                continue
            terms = tuple((len(before) - 1 + k, token, 1.0) for k, token in enumerate(target))
            if len(target) == 1:
                shared[before] = len(sequences)
            sequences.append(TokenSequence(len(sequences), (*before, *target[:-1]), terms, ()))
            owners.append([n] * len(target))
        total, done = np.zeros(len(texts)), 0
        with fast_math(self._loaded):
            for group in by_budget([s for s in sequences if s.terms], self._batch_tokens):
                batch = pad(group, self._loaded.device)
                rows = torch.tensor([r for r, s in enumerate(group) for _ in s.terms], device=self._loaded.device)
                at = torch.tensor([p for s in group for p, _, _ in s.terms], device=self._loaded.device)
                token = torch.tensor([t for s in group for _, t, _ in s.terms], device=self._loaded.device)
                with predict_at(self._loaded, rows, at):
                    logits = self._loaded.model(input_ids=batch.ids_LS).logits.float()  # padded to the right
                values = logits.log_softmax(-1).gather(1, token[:, None])[:, 0].double().cpu().numpy()
                np.add.at(total, [n for s in group for n in owners[s.example]], values)
                done += len(group)
                progress("likelihood", done, len(sequences))
        return total
