"""Read or edit a block's output for the length of a ``with`` block; the model is left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Edit = Callable[[torch.Tensor], torch.Tensor | None]


@contextmanager
def edit_output(module: nn.Module, edit: Edit) -> Iterator[None]:
    """While open, ``edit(h)`` sees the hidden states (B, S, d) that ``module`` returns; what it returns replaces them.

    Returning ``None`` leaves them unchanged. The hook is removed when the block ends, also on an exception.
    """

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            edited = edit(output[0])
            return None if edited is None else (edited, *output[1:])
        return edit(output)

    handle = module.register_forward_hook(hook)
    try:
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
