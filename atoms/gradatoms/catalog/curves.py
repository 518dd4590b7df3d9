"""Dose–response curves, for the pages: measured by the server while nobody wants its model, and read for the plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatoms.catalog.worker import Job, StoppedError, Worker
from gradatoms.dictionary.base import Atoms
from gradatoms.errors import GradAtomsError
from gradatoms_store import StoreError

if TYPE_CHECKING:
    from gradatoms.models import LoadedModel

FILE = "dose.jsonl"
"""Where curves are kept (``dose.files``, which brings in torch)."""


class Curves:
    """Measures the curves of the atoms that were asked for, last asked first."""

    def __init__(self, atoms: Atoms, worker: Worker) -> None:
        self._atoms, self._worker = atoms, worker
        self._wanted: list[int] = []
        self._done = 0
        self._error = ""
        self._turns = 0

    def ask(self, chosen: Sequence[int]) -> None:
        """Measure the curves of some atoms before the others that were asked for; those that are kept already stay."""
        self._wanted = [*chosen, *(a for a in self._wanted if a not in set(chosen))]
        self._done, self._error = 0, ""
        self._turns += 1
        self._worker.when_idle(self._step)

    def state(self) -> dict[str, Any]:
        """``running``, how many are ``done`` of how many (``total``), and the last ``error``."""
        return {"running": bool(self._wanted), "done": self._done, "total": len(self._wanted), "error": self._error}

    def _step(self, loaded: LoadedModel, job: Job) -> bool:
        from gradatoms.dose import dose_all

        asked, chosen = self._turns, list(self._wanted)

        def told(_: str, done: int, __: int) -> None:
            self._done = done
            if job.stopped:
                raise StoppedError

        try:
            dose_all(loaded, self._atoms, chosen=chosen, progress=told)
        except (GradAtomsError, StoreError, OSError) as error:
            self._error = str(error)
        if asked != self._turns:  # more were asked for meanwhile
            return True
        self._wanted = []
        return False


def curve_of(folder: Path, atom: int) -> dict[str, Any] | None:
    """What the plot of an atom's curve needs, or ``failure``: why there is none; None where none was measured."""
    if not (folder / FILE).exists():
        return None
    from gradatoms.dose.files import load_results
    from gradatoms.dose.records import Unmeasured

    curve = load_results(folder).get(atom)
    if curve is None:
        return None
    if isinstance(curve, Unmeasured):
        return {"failure": curve.failure}
    return {
        "failure": "",
        "kl": [d.kl for d in curve.doses], "alpha": [d.alpha for d in curve.doses], "gain": [d.gain for d in curve.doses],
        "off_target": [d.off_target_kl for d in curve.doses], "perplexity_ratio": [d.perplexity_ratio for d in curve.doses],
        "target_rate": [d.target_rate for d in curve.doses], "plain_rate": curve.target_rate,
        "baselines": {name: {"kl": [e.kl for e in some], "gain": [e.gain for e in some]} for name, some in curve.baselines.items()},
        "asked": None if curve.prompt is None else {"kl": curve.prompt.kl, "gain": curve.prompt.gain},
        "safe_kl": curve.safe_kl, "safe_alpha": curve.safe_alpha, "n": len(curve.rows),
    }  # fmt: skip
