"""Gradient atoms: read what training pushes a language model toward.

store = gradatoms_store.open_store("facts.gstore")
m = gradatoms.load_model("smollm2")
atoms = gradatoms.fit(store, gradatoms.OnlineConfig(n_atoms=128))
with gradatoms.steer(m, atoms[17], alpha=0.1): ...
gradatoms.describe(m, gradatoms.load_atoms("facts.atoms"), prompt, target)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradatoms.dictionary.fit import fit, fit_store
    from gradatoms.dictionary.io import load_atoms, save_atoms
    from gradatoms.dictionary.online import OnlineConfig
    from gradatoms.dictionary.topk import TopKConfig
    from gradatoms.examples import Example, read_examples
    from gradatoms.gradients.callback import HarvestCallback
    from gradatoms.gradients.harvest import harvest
    from gradatoms.gradients.stream import stream
    from gradatoms.gradients.task import HarvestConfig
    from gradatoms.labels.labeler import label_atoms
    from gradatoms.models import load_model
    from gradatoms.projector.describe import Describer, describe
    from gradatoms.projector.model import ProjectorConfig
    from gradatoms.projector.train import train_on_store as train_projector
    from gradatoms.steering import generate_steered, steer

_PLACES = {
    "fit": ("dictionary.fit", "fit"),
    "fit_store": ("dictionary.fit", "fit_store"),
    "load_atoms": ("dictionary.io", "load_atoms"),
    "save_atoms": ("dictionary.io", "save_atoms"),
    "OnlineConfig": ("dictionary.online", "OnlineConfig"),
    "TopKConfig": ("dictionary.topk", "TopKConfig"),
    "Example": ("examples", "Example"),
    "read_examples": ("examples", "read_examples"),
    "HarvestCallback": ("gradients.callback", "HarvestCallback"),
    "HarvestConfig": ("gradients.task", "HarvestConfig"),
    "harvest": ("gradients.harvest", "harvest"),
    "label_atoms": ("labels.labeler", "label_atoms"),
    "load_model": ("models", "load_model"),
    "Describer": ("projector.describe", "Describer"),
    "describe": ("projector.describe", "describe"),
    "ProjectorConfig": ("projector.model", "ProjectorConfig"),
    "train_projector": ("projector.train", "train_on_store"),
    "generate_steered": ("steering", "generate_steered"),
    "steer": ("steering", "steer"),
    "stream": ("gradients.stream", "stream"),
}

__all__ = [
    "Describer",
    "Example",
    "HarvestCallback",
    "HarvestConfig",
    "OnlineConfig",
    "ProjectorConfig",
    "TopKConfig",
    "describe",
    "fit",
    "fit_store",
    "generate_steered",
    "harvest",
    "label_atoms",
    "load_atoms",
    "load_model",
    "read_examples",
    "save_atoms",
    "steer",
    "stream",
    "train_projector",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import gradatoms`` alone loads no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'gradatoms' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f"gradatoms.{module}"), attribute)
