"""The reading model: a language model with a projector before it, and perhaps a small LoRA that is on only while it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float

from gradatoms.errors import ConfigError
from gradatoms.hooking import fast_math
from gradatoms.models import LoadedModel
from gradatoms.prefix import Prefix, Tail, read_tail, run_prefix
from gradatoms.projector.model import Projector, injected
from gradatoms.projector.prompt import ANSWERS, QUERY, header, token_ids
from gradatoms.projector.text import Phrasing

_ADAPTER = "reader"


class Reader:
    """Reads pushes inside contexts.

    Args:
        lora: weights of a trained LoRA, by name; empty starts it afresh. Only with ``lora_rank`` above 0.

    Raises:
        ConfigError: ``lora_rank`` above 0 without peft, or for a model whose modules peft does not know.
    """

    def __init__(self, loaded: LoadedModel, projector: Projector, lora: dict[str, torch.Tensor] | None = None) -> None:
        self.loaded, self.projector = loaded, projector
        self._headers: dict[Phrasing, Prefix] = {}
        self._lora: Any = _add_lora(loaded, projector.config.lora_rank, projector.config.seed)
        if lora:
            for name, parameter in self.lora_parameters().items():
                parameter.data.copy_(lora[name])

    def lora_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The LoRA's parameters by name; none where the model is frozen."""
        if self._lora is None:
            return {}
        return {name: p for name, p in self.loaded.model.named_parameters() if f".{_ADAPTER}." in name}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While open the LoRA, if any, is on, and products are in bfloat16 where that is native."""
        if self._lora is not None:
            self._lora.enable_adapter_layers()
        try:
            with fast_math(self.loaded):
                yield
        finally:
            if self._lora is not None:
                self._lora.disable_adapter_layers()

    def close(self) -> None:
        """Take the LoRA out of the model again."""
        if self._lora is not None:
            self._lora.unload()
            self._lora = None

    def prefix(self, contexts: Sequence[str], phrasing: Phrasing, *, fresh: bool = False) -> Prefix:
        """The cached prefix of each context: header, context, query; within ``reading``.

        Args:
            fresh: the LoRA has changed: compute the header anew.
        """
        if fresh or phrasing not in self._headers:
            text = header(phrasing, self.projector.config.soft_tokens)
            self._headers[phrasing] = run_prefix(self.loaded, [self.loaded.tokenizer(text).input_ids])
        ids = [token_ids(self.loaded, text + QUERY) for text in contexts]
        return run_prefix(self.loaded, ids, after=self._headers[phrasing])

    @torch.no_grad()
    def soft(self, x: Float[torch.Tensor, "N I"], terms: int = 1) -> Float[torch.Tensor, "R K M"]:
        """û of the leading ``terms`` terms of N pushes: first terms first."""
        return self.projector(x.to(self.loaded.device))[:, :terms].transpose(0, 1).flatten(0, 1)

    @torch.no_grad()
    def read(
        self,
        contexts: Sequence[str],
        soft: Float[torch.Tensor, "R K M"] | None,
        phrasing: Phrasing,
        *,
        beside: bool = False,
    ) -> Tail:
        """Terms of pushes read inside contexts, up to where the description of a term begins; within ``reading``.

        Args:
            contexts: N; term r is read inside ``contexts[r % N]``.
            soft: what the projector gives, from ``soft``; None reads no vector.
            beside: add the same R texts with no vector, as a second half.
        """
        n, device = len(contexts), self.loaded.device
        distinct = list(dict.fromkeys(contexts))
        inside = torch.tensor([distinct.index(c) for c in contexts], device=device)
        prefix = self.prefix(distinct, phrasing)
        empty = torch.zeros(n, self.projector.config.soft_tokens, self.projector.d_model, device=device)
        u = empty if soft is None else soft
        terms = len(u) // n
        rows = inside.repeat(terms)
        if beside:  # without a vector all terms of a push are one text: it is read once
            u, rows = torch.cat([u, empty]), torch.cat([rows, inside])
        ids = torch.tensor(token_ids(self.loaded, ANSWERS[phrasing]), device=device)
        answer = self.loaded.embeddings[ids].expand(len(rows), -1, -1)
        with injected(self.loaded, self.projector, u) as embeds:
            tail = read_tail(self.loaded, prefix, rows, torch.cat([embeds, answer], dim=1))
        if not beside or terms == 1:
            return tail
        every = torch.arange(terms * n, device=device)
        return tail.part(torch.cat([every, terms * n + every % n]))


def _add_lora(loaded: LoadedModel, rank: int, seed: int) -> Any:
    if rank == 0:
        return None
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError:
        raise ConfigError("expected peft for lora_rank above 0, it is not installed; pip install peft") from None
    torch.manual_seed(seed)
    try:
        lora = LoraModel(loaded.model, LoraConfig(r=rank, lora_alpha=2 * rank), _ADAPTER)
    except ValueError as error:
        raise ConfigError(
            f"expected a model whose attention peft knows for lora_rank {rank}, got {type(loaded.model).__name__} "
            f"({str(error).splitlines()[0]}); use lora_rank 0"
        ) from error
    lora.to(loaded.device)
    lora.disable_adapter_layers()
    return lora
