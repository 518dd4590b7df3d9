"""Where atoms came from: their folder, their store, their model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gradatoms.dictionary.base import Atoms
from gradatoms.errors import AtomsFormatError, ConfigError, ModelMismatchError
from gradatoms_store import Store, open_store

if TYPE_CHECKING:
    from gradatoms.models import LoadedModel


def folder_of(atoms: Atoms) -> Path:
    """The folder of saved atoms.

    Raises:
        AtomsFormatError: they were never saved.
    """
    if atoms.path is None:
        raise AtomsFormatError("expected atoms from a folder, these are in memory only; save them with save_atoms")
    return atoms.path


def store_of(atoms: Atoms, path: str | Path | None = None) -> Store:
    """The store that ``atoms`` were fitted on, or the one at ``path``.

    Raises:
        AtomsFormatError: the store has moved or changed since.
    """
    recorded = atoms.config.get("store")
    if path is not None:
        return open_store(path)
    if recorded is None:
        raise AtomsFormatError(
            "expected atoms that know their store, these were fitted on an array; name a store with --store"
        )
    places = [_found(atoms, Path(place)) for place in (recorded["path"], *recorded.get("more", ()))]
    store = open_store(places[0], *places[1:])
    if store.fingerprint != recorded["fingerprint"]:
        raise AtomsFormatError(
            f"expected the store that these atoms were fitted on, {places[0]} is another harvest; "
            "name the right one with --store"
        )
    return store


def _found(atoms: Atoms, where: Path) -> Path:
    """``where``, or beside the atoms if the two folders were moved together."""
    if not where.exists() and atoms.path is not None and (atoms.path.parent / where.name).exists():
        where = atoms.path.parent / where.name
    if not where.exists():
        raise AtomsFormatError(
            f"expected the store of these atoms at {where}, found nothing; name its new place with --store"
        )
    return where


def require_same_model(atoms: Atoms, loaded: LoadedModel) -> None:
    """Refuse a model that the atoms were not made with.

    Raises:
        ModelMismatchError: other weights.
    """
    made = atoms.config.get("model", {})
    if made and not loaded.fingerprint.same_weights(made):
        raise ModelMismatchError(
            f"expected the model these atoms were made with ({made.get('name')}, fingerprint {made.get('sha')}), got "
            f"{loaded.fingerprint.name} ({loaded.fingerprint.sha}); name the right one with --model"
        )


def require_activations(atoms: Atoms) -> None:
    """Refuse atoms of weight gradients, where something is done to the residual stream.

    Raises:
        ConfigError: they are of weight gradients.
    """
    if atoms.space == "weights":
        raise ConfigError(
            "expected atoms of activation gradients, these are of weight gradients; steer with `atoms steer --weights`, attribute with "
            "`atoms attribute`, or harvest without --space weights"
        )


def load_model_of(atoms: Atoms, name: str | None = None) -> LoadedModel:
    """The model that ``atoms`` were made with, from where it was, or from ``name`` where it has moved.

    Raises:
        ModelMismatchError: ``name`` holds other weights.
    """
    from gradatoms.models import load_model  # brings in torch and transformers

    recorded = atoms.config.get("model", {}).get("name")
    if name is None and recorded is None:
        raise AtomsFormatError(
            "expected atoms that know their model, these were fitted on an array; name the model with --model"
        )
    base, _, adapter = str(name or recorded).partition(" + ")  # as ``load_model`` names a model with an adapter
    loaded = load_model(base, adapter=adapter or None)
    require_same_model(atoms, loaded)
    return loaded
