"""Curves of many atoms, kept in the atoms folder as they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.provenance import folder_of, require_same_model, store_of
from gradatoms.dose.bench import Bench
from gradatoms.dose.cases import Cases
from gradatoms.dose.files import append_curve, load_results
from gradatoms.dose.neutral import CALIBRATING, UNSEEN
from gradatoms.dose.records import Curve, DoseConfig, Unmeasured
from gradatoms.errors import ConfigError
from gradatoms.hooking import fast_math
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent

DEFAULT = DoseConfig()


def dose_all(
    loaded: LoadedModel,
    atoms: Atoms,
    config: DoseConfig = DEFAULT,
    *,
    chosen: Sequence[int] | None = None,
    store_path: str | Path | None = None,
    progress: Progress = silent,
) -> dict[int, Curve | Unmeasured]:
    """Dose–response curves, each added to ``dose.jsonl`` in the atoms folder when it is done.

    Atoms that have a line there with the same digest of settings, atoms, label, store and model are not measured again.
    Products run in bfloat16 where the processor has the instructions.

    Args:
        chosen: which atoms; None is all.
        store_path: the store, where it has moved.

    Returns:
        for each atom its curve, or why it has none.

    Raises:
        ConfigError: no such atom, or a store that cannot be used.
        ModelMismatchError: other weights than those the atoms were made with.
    """
    require_same_model(atoms, loaded)
    folder = folder_of(atoms)
    wanted = [atoms[i].index for i in (range(len(atoms)) if chosen is None else dict.fromkeys(chosen))]
    store = store_of(atoms, store_path)
    cases = Cases(loaded, atoms, store, config)
    about = asdict(config) | {
        "store": store.fingerprint,
        "model": loaded.fingerprint.sha,
        "atoms": hashlib.sha256(np.ascontiguousarray(atoms.W_dec).tobytes()).hexdigest(),
        "neutral": [CALIBRATING, UNSEEN],
    }
    settings = {
        atom: hashlib.sha256(
            json.dumps(about | {"label": cases.labels.get(atom)}, sort_keys=True).encode()
        ).hexdigest()[:16]
        for atom in wanted
    }
    known = load_results(folder)
    found = {atom: known[atom] for atom in wanted if atom in known and known[atom].settings == settings[atom]}
    left = [atom for atom in wanted if atom not in found]
    if left:
        progress("dose", len(found), len(wanted))
        with fast_math(loaded):
            bench = Bench(loaded, cases)
            for case in cases.of(left):
                index = case.atom.index
                found[index] = bench.curve(case, settings[index])
                append_curve(folder, found[index])
                progress("dose", len(found), len(wanted))
    return {atom: found[atom] for atom in wanted}


def dose_curve(
    loaded: LoadedModel,
    atoms: Atoms,
    atom: int,
    config: DoseConfig = DEFAULT,
    *,
    store_path: str | Path | None = None,
    progress: Progress = silent,
) -> Curve:
    """The curve of one atom, as ``dose_all``.

    Raises:
        ConfigError: as ``dose_all``, and where no held-out row is led by the atom.
    """
    found = dose_all(loaded, atoms, config, chosen=[atom], store_path=store_path, progress=progress)[atom]
    if isinstance(found, Unmeasured):
        raise ConfigError(found.failure)
    return found
