"""Dictionaries matched by directions, and by codes where directions mean nothing to each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradatoms.catalog.compare import match_atoms
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.fit import fit_store
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.errors import ConfigError
from gradatoms.examples import read_examples
from gradatoms.gradients.harvest import harvest
from gradatoms.gradients.task import HarvestConfig
from gradatoms.models import load_model

LAYERS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def fitted(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Atoms]:
    """One model's atoms at two layers, on the same examples (in another order), and on others."""
    where, tiny = tmp_path_factory.mktemp("compared"), load_model(str(small_folder), device="cpu")
    examples = list(read_examples("builtin:corrections", limit=140))
    found = {}
    for name, some, hook in (
        ("early", examples[:90], LAYERS[0]), ("late", examples[30:90][::-1], LAYERS[1]), ("other", examples[100:], LAYERS[0]),
    ):  # fmt: skip
        harvest(tiny, some, where / f"{name}.gstore", HarvestConfig(hooks=(hook,), positions="prediction"))
        config = OnlineConfig(n_atoms=12, epochs=4)
        found[name], _ = fit_store(where / f"{name}.gstore", where / f"{name}.atoms", config, checks=False)
    return found


def test_layers_are_matched_by_codes_on_shared_examples(fitted: dict[str, Atoms]) -> None:
    match = match_atoms(fitted["early"], fitted["late"])
    assert match.by == "codes" and match.examples == 60
    assert match.mean > match.null + 0.1 and 0 < match.mutual <= 1
    cosines = [r["cosine"] for r in match.rows]
    assert cosines == sorted(cosines, reverse=True) and [r["atom"] for r in match.rows] != list(range(12))


@pytest.mark.parametrize("by", ["directions", "codes"])
def test_a_dictionary_matches_itself(fitted: dict[str, Atoms], by: str) -> None:
    match = match_atoms(fitted["early"], fitted["early"], by)  # type: ignore[arg-type]
    used = [r for r in match.rows if r["cosine"] > 0]
    assert all(r["other"] == r["atom"] and r["mutual"] and r["cosine"] == pytest.approx(1, abs=1e-5) for r in used)
    assert len(used) >= 8 and match.null < 0.9 and match.by == by


def test_what_cannot_be_matched_is_said(fitted: dict[str, Atoms]) -> None:
    with pytest.raises(ConfigError, match="share none"):
        match_atoms(fitted["early"], fitted["other"], "codes")
    narrow = Atoms(np.eye(4, dtype=np.float32), np.zeros(4, np.float32), fitted["early"].coder, LAYERS[0])
    with pytest.raises(ConfigError, match="match them by codes"):
        match_atoms(fitted["early"], narrow, "directions")
