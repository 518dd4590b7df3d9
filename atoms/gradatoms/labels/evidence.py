"""What a label is made from, kept on disk so that another teacher can relabel without the model.

For each atom: the lookahead in contexts where the atom is active and in neutral ones, and the examples that it is most
active on. Contexts and examples come from the rows the dictionary was fitted on; held-out rows stay for scoring.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.coding import Codes, top_rows
from gradatoms.dictionary.io import save_whole
from gradatoms.errors import AtomsFormatError
from gradatoms.examples import Example
from gradatoms.hooking import fast_math
from gradatoms.lookahead import NEUTRAL, Shift, lookahead
from gradatoms.models import LoadedModel
from gradatoms.progress import Progress, silent

TOKENS = 20
"""Promoted and demoted tokens kept an atom."""
CONTEXTS = 4
"""Active contexts an atom is injected into."""
EXAMPLES = 20
"""Top examples kept an atom."""


@dataclass(frozen=True)
class TokenShift:
    """A token and how far the atom moves it."""

    token: str
    delta_p: float
    """Mean change of probability."""
    log_ratio: float
    """Mean change of log-probability, in nats."""


@dataclass(frozen=True)
class TopExample:
    """An example the atom is active on, with its weight. The concept is deliberately not here."""

    prompt: str
    target: str
    foil: str | None
    weight: float


@dataclass(frozen=True)
class Evidence:
    """All that a teacher sees of one atom."""

    atom: int
    promoted: tuple[TokenShift, ...]
    """In the contexts where the atom is active, by Δp."""
    demoted: tuple[TokenShift, ...]
    neutral_promoted: tuple[TokenShift, ...]
    """In neutral contexts."""
    kl: float
    """Mean KL in active contexts, nats."""
    neutral_kl: float
    examples: tuple[TopExample, ...]
    density: float
    """Share of fitted rows that the atom is active on."""


def gather_evidence(
    loaded: LoadedModel,
    atoms: Atoms,
    codes: Codes,
    examples: Sequence[Example],
    row_example: np.ndarray,
    fitted_rows: np.ndarray,
    *,
    alpha: float = 0.1,
    progress: Progress = silent,
) -> list[Evidence]:
    """Evidence for every atom.

    Args:
        codes: codes of every row of the store, shape (rows, n_atoms).
        examples: the store's examples, by id.
        row_example: example id of each row, shape (rows,).
        fitted_rows: rows that the dictionary was fitted on; no other row is looked at.
        alpha: strength of the step, in units of ‖h‖.
    """
    hook = loaded.hook(atoms.hook)
    by_atom = codes[fitted_rows].tocsc()
    tops = []
    for atom in range(len(atoms)):
        rows = fitted_rows[top_rows(by_atom, atom, EXAMPLES)]
        tops.append([(int(row_example[r]), float(codes[int(r), atom])) for r in rows])
    prompts: dict[str, int] = {}
    pairs = []
    for atom, top in enumerate(tops):
        distinct = dict.fromkeys(examples[e].prompt for e, _ in top)
        for prompt in list(distinct)[:CONTEXTS]:
            pairs.append((atom, prompts.setdefault(prompt, len(prompts))))
    ids = [loaded.tokenizer(p).input_ids for p in prompts]
    total = len(pairs) + len(atoms) * len(NEUTRAL)
    neutral_ids = [loaded.tokenizer(p).input_ids for p in NEUTRAL]
    neutral_pairs = [(atom, c) for atom in range(len(atoms)) for c in range(len(NEUTRAL))]
    with fast_math(loaded):
        active = lookahead(
            loaded, hook, atoms.W_dec, ids, pairs, alpha=alpha,
            progress=lambda stage, done, _t: progress(stage, done, total),
        )  # fmt: skip
        neutral = lookahead(
            loaded, hook, atoms.W_dec, neutral_ids, neutral_pairs, alpha=alpha,
            progress=lambda stage, done, _t: progress(stage, len(pairs) + done, total),
        )  # fmt: skip
    density = np.diff(by_atom.indptr) / max(1, len(fitted_rows))
    found = []
    for atom, top in enumerate(tops):
        listed = tuple(
            TopExample(examples[e].prompt, examples[e].target, examples[e].foil, weight) for e, weight in top
        )
        has_context = bool(active.contexts[atom])
        found.append(
            Evidence(
                atom,
                _extreme(loaded, active, atom, largest=True) if has_context else (),
                _extreme(loaded, active, atom, largest=False) if has_context else (),
                _extreme(loaded, neutral, atom, largest=True),
                float(active.kl[atom]),
                float(neutral.kl[atom]),
                listed,
                float(density[atom]),
            )
        )
    return found


def _extreme(loaded: LoadedModel, shift: Shift, atom: int, *, largest: bool) -> tuple[TokenShift, ...]:
    values = shift.delta_p[atom] if largest else -shift.delta_p[atom]
    chosen = np.argpartition(-values, TOKENS)[:TOKENS]
    chosen = chosen[np.argsort(-values[chosen], kind="stable")]
    return tuple(
        TokenShift(loaded.decode([int(t)]), float(shift.delta_p[atom, t]), float(shift.log_ratio[atom, t]))
        for t in chosen
    )


_LISTS = ("promoted", "demoted", "neutral_promoted")


def save_evidence(path: Path, evidence: Sequence[Evidence]) -> None:
    """Write ``evidence.h5``: one group a list with ragged rows (``indptr``) of strings and numbers, one row an atom."""

    def write(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            file.attrs["format_version"] = 1
            file["kl"] = np.asarray([e.kl for e in evidence], np.float32)
            file["neutral_kl"] = np.asarray([e.neutral_kl for e in evidence], np.float32)
            file["density"] = np.asarray([e.density for e in evidence], np.float32)
            for name in _LISTS:
                rows = [getattr(e, name) for e in evidence]
                group = _ragged(file, name, rows)
                _strings(group, "token", [t.token for row in rows for t in row])
                group["delta_p"] = np.asarray([t.delta_p for row in rows for t in row], np.float32)
                group["log_ratio"] = np.asarray([t.log_ratio for row in rows for t in row], np.float32)
            rows = [e.examples for e in evidence]
            group = _ragged(file, "examples", rows)
            _strings(group, "prompt", [x.prompt for row in rows for x in row])
            _strings(group, "target", [x.target for row in rows for x in row])
            _strings(group, "foil", [x.foil or "" for row in rows for x in row])
            group["weight"] = np.asarray([x.weight for row in rows for x in row], np.float32)

    save_whole(path, write)


def load_evidence(path: str | Path) -> list[Evidence]:
    """Read ``evidence.h5``.

    Raises:
        AtomsFormatError: not there or damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            kl, neutral_kl, density = (file[name][:].tolist() for name in ("kl", "neutral_kl", "density"))
            lists = {}
            for name in _LISTS:
                group = file[name]
                columns = zip(
                    group["token"].asstr()[:], group["delta_p"][:].tolist(), group["log_ratio"][:].tolist(), strict=True
                )
                lists[name] = _split(group, [TokenShift(*c) for c in columns])
            group = file["examples"]
            prompts, targets, foils = (group[name].asstr()[:] for name in ("prompt", "target", "foil"))
            quads = zip(prompts, targets, foils, group["weight"][:].tolist(), strict=True)
            examples = _split(group, [TopExample(p, t, f or None, w) for p, t, f, w in quads])
    except (OSError, KeyError, ValueError) as error:
        raise AtomsFormatError(
            f"expected evidence at {path}, got {type(error).__name__}: {error}; run `atoms label`"
        ) from error
    return [
        Evidence(
            i,
            lists["promoted"][i],
            lists["demoted"][i],
            lists["neutral_promoted"][i],
            kl[i],
            neutral_kl[i],
            examples[i],
            density[i],
        )
        for i in range(len(kl))
    ]


def _ragged(file: h5py.File, name: str, rows: Sequence[Sequence[object]]) -> h5py.Group:
    group = file.create_group(name)
    group["indptr"] = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return group


def _split(group: h5py.Group, items: list[Any]) -> list[tuple[Any, ...]]:
    bounds = group["indptr"][:].tolist()
    return [tuple(items[a:b]) for a, b in itertools.pairwise(bounds)]


def _strings(group: h5py.Group, name: str, values: list[str]) -> None:
    clean = [v.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8") for v in values]
    group.create_dataset(
        name, data=np.asarray(clean, dtype=object), dtype=h5py.string_dtype("utf-8"), shape=(len(clean),)
    )
