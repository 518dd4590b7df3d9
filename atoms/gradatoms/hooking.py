"""Read or edit a block's output for the length of a ``with`` block; the model is left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import nn

from gradatoms.errors import HookError

if TYPE_CHECKING:
    from gradatoms.models import HookSite, LoadedModel

Edit = Callable[[torch.Tensor], torch.Tensor | None]


@contextmanager
def edit_output(module: nn.Module, edit: Edit) -> Iterator[None]:
    """While open, ``edit(h)`` sees the hidden states (B, S, d) that ``module`` returns; what it returns replaces them.

    Returning ``None`` leaves them unchanged. The hook is removed when the block ends, also on an exception.
    """

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple | list):
            edited = edit(output[0])
            if edited is None:
                return None
            return [edited, *output[1:]] if isinstance(output, list) else (edited, *output[1:])
        return edit(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def edit_site(site: HookSite, edit: Edit) -> Iterator[None]:
    """While open, ``edit(h)`` sees the activations (B, S, d) at a hook; what it returns, if not ``None``, replaces them.

    The hook is removed when the block ends, also on an exception.

    Raises:
        HookError: what the block passes on is no residual stream of shape (B, S, d).
    """
    shape: list[torch.Size] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        h = args[0] if args else kwargs["hidden_states"]
        if h.dim() != 3 or h.shape[-1] != site.d:
            block = type(site.block).__name__
            raise HookError(
                f"expected activations of shape (B, S, {site.d}) at {site.name}, {block} passes on {tuple(h.shape)}; this "
                "architecture has no single residual stream and cannot be hooked"
            )
        shape[:] = [h.shape]
        edited = edit(h) if site.kind == "resid_pre" else None
        if edited is None:
            return None
        return ((edited, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": edited})

    def edit_flat(h: torch.Tensor) -> torch.Tensor | None:
        """Some blocks lay the positions of all sequences end to end for their MLP."""
        if h.dim() != 2:
            return edit(h)
        edited = edit(h.view(shape[0]))
        return None if edited is None else edited.view(h.shape)

    handle = site.block.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        if site.kind == "resid_pre":
            yield
        else:
            with edit_output(site.module, edit_flat):
                yield
    finally:
        handle.remove()


@contextmanager
def edit_input(module: nn.Module, edit: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """While open, ``module`` is called with ``edit(x)`` in place of its first positional input ``x``."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (edit(args[0]), *args[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def predict_at(
    loaded: LoadedModel, row_P: Int[torch.Tensor, " P"], position_P: Int[torch.Tensor, " P"]
) -> Iterator[None]:
    """While open, the model returns logits (P, V) for the given (row, position) pairs only.

    The output projection is given one contiguous (P, D) matrix, so neither the full logits nor a copy of the projection
    per batch row is ever made.
    """
    with edit_input(loaded.model.get_output_embeddings(), lambda h_BSD: h_BSD[row_P, position_P].contiguous()):
        yield


@contextmanager
def attention(loaded: LoadedModel, name: str | None) -> Iterator[None]:
    """While open, the model uses this attention implementation (``eager``, ``sdpa``, …); None leaves its own."""
    before = loaded.model.config._attn_implementation
    if name is None or name == before:
        yield
        return
    loaded.model.set_attn_implementation(name)
    try:
        yield
    finally:
        loaded.model.set_attn_implementation(before)


@contextmanager
def plain_attention(loaded: LoadedModel) -> Iterator[None]:
    """While open, a CPU model uses plain products for attention: on rows of a few dozen tokens their backward is faster.

    (Measured: whole backward of SmolLM2 on 10-token rows, 1.4 times the tokens a second of the fused kernel.)
    """
    plain = loaded.device.type == "cpu" and loaded.model.config._attn_implementation == "sdpa"
    with attention(loaded, "eager" if plain else None):
        yield


@contextmanager
def fast_math(loaded: LoadedModel) -> Iterator[None]:
    """While open, products run in bfloat16 where the processor has the instructions, and attention is plain."""
    device = loaded.device.type
    with plain_attention(loaded), torch.autocast(device, torch.bfloat16, enabled=has_bfloat16(device)):
        yield


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 products are native on ``device`` (``cpu`` or ``cuda``)."""
    if device == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device == "cuda" and torch.cuda.is_bf16_supported()
