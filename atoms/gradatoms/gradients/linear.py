"""The linear modules of a model, and a watch over what goes into them and the gradient of what comes out.

A weight's gradient is ∂J/∂W = Σ_t δ_t x_tᵀ, over the tokens t of a document, with x_t what goes into the module and δ_t = ∂J/∂y_t.
So whoever sees x and δ can form it, or any product with it, without autograd ever holding it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradatoms.errors import ConfigError
from gradatoms.models import LoadedModel

LORA = re.compile(r"\.lora_[AB]\.")
DEFAULT = ("*.q_proj", "*.v_proj")
"""Modules that are taken unless told otherwise, where there is no adapter."""


@dataclass(frozen=True, kw_only=True)
class LinearSite:
    """A module that multiplies by a weight."""

    name: str
    """Module path inside the Hugging Face model, e.g. ``model.layers.3.self_attn.q_proj``."""
    d_in: int
    d_out: int
    module: nn.Module = field(repr=False, compare=False)

    @property
    def weight(self) -> torch.Tensor:
        """The parameter seen as (d_out, d_in); what is added to it in place reaches the model."""
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight.data.T if isinstance(self.module, Conv1D) else weight.data


@dataclass(frozen=True)
class Uncovered:
    """A parameter whose gradient no row holds, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


def linear_sites(loaded: LoadedModel) -> dict[str, LinearSite]:
    """Every linear module but the output projection, by name, in the order of the model.

    A pass of three tokens tells which are called at all: some models use the weight of a module without calling it, and then
    nobody sees what goes in.
    """
    found = _linear(loaded)
    called: set[str] = set()
    with ExitStack() as stack, torch.no_grad():
        for name, site in found.items():
            handle = site.module.register_forward_hook(lambda *_, name=name: called.add(name))
            stack.callback(handle.remove)
        ids = torch.arange(1, 4, device=loaded.device)[None] % loaded.fingerprint.vocab_size
        loaded.model(input_ids=ids, use_cache=False)
    return {name: site for name, site in found.items() if name in called}


def _linear(loaded: LoadedModel) -> dict[str, LinearSite]:
    head = loaded.model.get_output_embeddings()
    found = {}
    for name, module in loaded.model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and module.weight.is_floating_point():
            found[name] = LinearSite(name=name, d_in=module.in_features, d_out=module.out_features, module=module)
        elif isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
            found[name] = LinearSite(name=name, d_in=d_in, d_out=d_out, module=module)
    return found


def find_linear(loaded: LoadedModel, patterns: Sequence[str] = ()) -> list[LinearSite]:
    """The modules that globs, or ends of names such as ``q_proj``, stand for, in the order of the model.

    Args:
        patterns: empty takes what an adapter trains (LoRA's A and B), or without one the query and value projections; ``all``
            takes every linear module that is not part of an adapter's frozen base.

    Raises:
        ConfigError: a pattern stands for no module.
    """
    sites = linear_sites(loaded)
    adapter = [name for name in sites if LORA.search(name)]
    if not patterns:
        names = adapter or [n for n in sites if any(fnmatchcase(n, p) for p in DEFAULT)] or list(sites)
        return [sites[name] for name in names]
    chosen: set[str] = set()
    for pattern in patterns:
        names = [n for n in sites if pattern == "all" or fnmatchcase(n, pattern) or n.endswith(f".{pattern}")]
        if not names:
            ends = sorted({name.rsplit(".", 1)[-1] for name in sites})
            raise ConfigError(
                f"expected modules of {loaded.fingerprint.name}, none is called {pattern!r}; there are {', '.join(ends)}, and all"
            )
        chosen |= set(names)
    return [site for name, site in sites.items() if name in chosen]


def uncovered(loaded: LoadedModel, sites: Sequence[LinearSite]) -> list[Uncovered]:
    """The parameters of the model that ``sites`` leave out."""
    taken = {f"{site.name}.weight" for site in sites}
    linear = {f"{name}.weight" for name in linear_sites(loaded)}
    uncalled = {f"{name}.weight" for name in _linear(loaded)} - linear
    embeddings = {id(m.weight) for m in loaded.model.modules() if isinstance(m, nn.Embedding)}
    head = loaded.model.get_output_embeddings()
    embeddings |= set() if head is None else {id(head.weight)}
    found = []
    for name, parameter in loaded.model.named_parameters():
        if name in taken:
            continue
        reason = (
            "an embedding or the output projection" if id(parameter) in embeddings
            else "not asked for" if name in linear
            else "of a module that the model never calls" if name in uncalled
            else "a bias" if name.endswith("bias")
            else "a norm or another vector" if parameter.dim() == 1
            else "not the weight of a linear module (experts, convolutions)"
        )  # fmt: skip
        found.append(Uncovered(name, tuple(parameter.shape), reason))
    return found


Enter = Callable[[int, torch.Tensor], Any]
"""(number of the site, x of shape (L, S, d_in)) to whatever ``Leave`` needs."""
Leave = Callable[[int, Any, torch.Tensor], None]
"""(number of the site, what ``Enter`` gave, δ of shape (L, S, d_out))."""


@contextmanager
def watch(
    sites: Sequence[LinearSite], lines: tuple[int, int], enter: Enter, leave: Leave
) -> Iterator[list[torch.Tensor]]:
    """While open, passes of the model tell what goes into the modules, and backward passes the gradient of what comes out.

    Gives a list to which the first tensors of the graph are added: ``torch.autograd.backward(J, inputs=…)`` is to end there.
    Parameters may be frozen; nothing below the lowest module is differentiated.

    Args:
        lines: shape (L, S) of the token batch; modules that see all tokens end to end are understood.

    Raises:
        ConfigError: a module is given something else, as experts are that see only some tokens.
    """
    leaves: list[torch.Tensor] = []

    def shaped(x: torch.Tensor, site: LinearSite) -> torch.Tensor:
        if x.shape[:-1] == lines:
            return x
        if x.shape[:-1].numel() == lines[0] * lines[1]:
            return x.reshape(*lines, x.shape[-1])
        raise ConfigError(
            f"expected {site.name} to see each token of a batch once, it is given {tuple(x.shape)} of {lines[0]} × {lines[1]} tokens; "
            "leave it out of --modules"
        )

    def hook(number: int) -> Callable[..., torch.Tensor | None]:
        site = sites[number]

        def after(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                kept = enter(number, shaped(args[0].detach(), site))

            def back(gradient: torch.Tensor) -> None:
                with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                    leave(number, kept, shaped(gradient, site))

            if output.requires_grad:
                output.register_hook(back)
                return None
            leaf = output.detach().requires_grad_(True)
            leaf.register_hook(back)
            leaves.append(leaf)
            return leaf.clone()  # some blocks add to it in place

        return after

    with ExitStack() as stack:
        for number, site in enumerate(sites):
            handle = site.module.register_forward_hook(hook(number))
            stack.callback(handle.remove)
        yield leaves
