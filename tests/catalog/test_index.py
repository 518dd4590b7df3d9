"""The catalog's index: order, filters, search, what it comes from, and its map."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradatoms.catalog.index import FILE, Index, Query, open_index, whole_page, write_rows
from gradatoms.catalog.layout import flat
from gradatoms.catalog.meaning import Meanings
from gradatoms.catalog.pages import atom_page, catalog, close_atoms
from gradatoms.dictionary.io import load_atoms
from gradatoms.errors import ConfigError
from gradatoms.labels.labeler import set_label

LABELS = [
    "capital: Paris, Oslo",
    "currency: euro",
    "",
    "capital letters",
    "naïve spelling",
    "colour words",
    "",
    "past tense",
]
COHERENCE = [0.5, None, 0.1, 0.9, 0.5, -0.2, None, 0.3]


def row(atom: int) -> dict[str, Any]:
    return {
        "atom": atom, "label": LABELS[atom], "verdict": ("real", "weak")[atom % 2], "concept": "", "density": atom / 10,
        "coherence": COHERENCE[atom], "stability": None, "gain": 1.0, "promoted": ["a", " b"], "demoted": [],
        "scores": {"detection": 0.9} if atom == 3 else {},
    }  # fmt: skip


def page(atom: int) -> dict[str, Any]:
    tokens = [{"token": f" tok{atom}", "delta_p": 0.1, "log_ratio": 1.0}]
    examples = [{"prompt": f"example number {atom}", "target": " Madrid" if atom == 7 else " x"}]
    return row(atom) | {"promoted": tokens, "demoted": [], "examples": examples}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    write_rows(tmp_path / "x.sqlite", ((row(a), page(a), (a / 10, -a / 10)) for a in range(8)))
    return Index(tmp_path / "x.sqlite")


def atoms_of(index: Index, **query: Any) -> list[int]:
    return [r["atom"] for r in index.find(Query(**query)).rows]


def test_rows_come_back_as_they_were(index: Index) -> None:
    found = index.find(Query())
    assert found.total == len(index) == 8 and [r["atom"] for r in found.rows] == list(range(8))
    for got, atom in zip(found.rows, range(8), strict=True):
        assert {k: v for k, v in got.items() if k not in ("x", "y")} == row(atom)
    assert index.row(3) == found.rows[3] and index.row(99) is None
    assert index.page(3) == page(3) and index.page(99) is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sort", ["label", "coherence", "density", "verdict", "atom", "detection"])
def test_what_is_missing_comes_last_both_ways(index: Index, sort: str, reverse: bool) -> None:
    found = index.find(Query(sort=sort, reverse=reverse)).rows
    values = [r["scores"].get("detection") if sort == "detection" else r[sort] for r in found]
    there = [v for v in values if v not in (None, "")]
    assert values[: len(there)] == there and len(values) == 8
    down = (sort in ("coherence", "density", "detection")) != reverse
    assert there == sorted(there, reverse=down)


def test_filters_hold_together(index: Index) -> None:
    assert atoms_of(index, least={"coherence": 0.3}) == [0, 3, 4, 7]
    assert atoms_of(index, most={"coherence": 0.3}, equal={"verdict": "real"}) == [2]
    assert atoms_of(index, least={"coherence": 0.3}, most={"density": 0.35}, sort="density") == [3, 0]
    assert atoms_of(index, limit=3, offset=6) == [6, 7]


def test_text_is_found_by_every_word_and_the_label_counts_most(index: Index) -> None:
    assert set(atoms_of(index, text="capital")) == {0, 3}
    assert atoms_of(index, text="capital oslo") == [0]
    assert atoms_of(index, text="CAPIT") and atoms_of(index, text="naive") == [4]
    assert atoms_of(index, text="madrid") == [7] and atoms_of(index, text="tok5") == [5]
    assert atoms_of(index, text="capital", least={"coherence": 0.6}) == [3]
    assert atoms_of(index, text="nothing like it") == []


@pytest.mark.parametrize(
    "text", ['"', "'; DROP TABLE atoms;--", "capital OR", "NEAR(", "*", "label:capital", "(", "\x00", "- ^", "∀"]
)
def test_a_query_is_words_and_never_syntax(index: Index, text: str) -> None:
    index.find(Query(text=text))
    assert len(index) == 8


@pytest.mark.parametrize("wrong", [{"sort": "atom; DROP"}, {"least": {"x": 1.0}}, {"equal": {"density": "1"}}])
def test_a_column_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected a"):
        Query(**wrong)


def test_meaning_is_cosine_of_embeddings_and_they_are_kept(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    axis = {"capital: Paris, Oslo": 0, "currency: euro": 1, "money": 1}

    def embed(texts: Sequence[str]) -> np.ndarray:
        asked.append(texts)
        return np.eye(3, dtype=np.float32)[[axis.get(t, 2) for t in texts]]

    monkeypatch.setattr("gradatoms.catalog.meaning.CHUNK", 4)
    meanings = Meanings(index, embed, "test")
    asked.clear()
    found = meanings.search(Query(text="money", limit=2), seconds=0)
    assert found.rows[0]["atom"] == 1 and found.rows[0]["similarity"] == pytest.approx(1)
    assert (found.total, found.unread) == (4, 2)  # as far as the time allowed
    meanings = Meanings(index, embed, "test")
    found = meanings.search(Query(text="money", equal={"verdict": "real"}))
    assert found.rows[0]["atom"] != 1 and found.unread == 0
    assert meanings.search(Query(text="money", limit=-1)).total == 6
    assert [len(texts) for texts in asked] == [4, 1, 1, 2, 1, 1]  # each label once


def test_the_map_is_what_lies_in_view(index: Index) -> None:
    assert index.map()["atom"] == list(range(8)) and index.map()["total"] == 8
    near = index.map((0.25, 0.55, -1.0, 1.0))
    assert near["atom"] == [3, 4, 5] and near["label"] == LABELS[3:6]
    assert len(index.map(most=4)["atom"]) == 4 and index.map(most=4)["total"] == 8


def test_an_index_follows_its_folder(catalog_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(catalog_folder, tmp_path / "x.atoms")
    atoms = load_atoms(tmp_path / "x.atoms")
    first = open_index(atoms)
    made = (tmp_path / "x.atoms" / FILE).stat().st_mtime_ns
    assert open_index(atoms).find(Query()).rows == first.find(Query()).rows
    assert (tmp_path / "x.atoms" / FILE).stat().st_mtime_ns == made
    set_label(atoms, 5, "a new name")
    assert open_index(atoms).find(Query(text="new name")).rows[0]["atom"] == 5
    (tmp_path / "x.atoms" / FILE).write_bytes(b"no database")
    assert len(open_index(atoms)) == len(atoms)
    with sqlite3.connect(tmp_path / "x.atoms" / FILE) as db:
        db.execute("UPDATE meta SET value = 'old' WHERE key = 'digest'")
    assert open_index(atoms).find(Query(text="new name")).total == 1


def test_the_index_holds_what_the_folder_does(catalog_folder: Path) -> None:
    atoms = load_atoms(catalog_folder)
    index = open_index(atoms)
    rows = index.find(Query(limit=-1)).rows
    assert [{k: v for k, v in r.items() if k not in ("x", "y")} for r in rows] == json.loads(json.dumps(catalog(atoms)))
    for atom in range(len(atoms)):
        alone, found = atom_page(atoms, atom), whole_page(index, atoms, atom)
        close = {
            key: [{k: v for k, v in n.items() if k != "label"} for n in found[key]]
            for key in ("neighbours", "opposites")
        }
        assert found | close == json.loads(json.dumps(alone))
        assert found["concepts"] == [] or sum(c["share"] for c in found["concepts"]) <= 1 + 1e-6
    with pytest.raises(ConfigError, match="from 0 to"):
        whole_page(index, atoms, len(atoms))


def test_a_folder_that_cannot_be_written_to_is_still_shown(
    catalog_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(catalog_folder, tmp_path / "x.atoms", ignore=shutil.ignore_patterns(FILE))
    atoms = load_atoms(tmp_path / "x.atoms")
    from gradatoms.catalog import index as module

    save, refused = module.save_whole, []

    def forbidden(path: Path, write: Any) -> None:
        if path.parent == tmp_path / "x.atoms":
            refused.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        save(path, write)

    monkeypatch.setattr(module, "save_whole", forbidden)
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    found = open_index(atoms)
    assert refused and len(found) == len(atoms) and found.path.parent != tmp_path / "x.atoms"
    shutil.rmtree(found.path.parent)


def test_close_atoms_are_by_cosine() -> None:
    W = np.asarray([[1, 0], [0.8, 0.6], [0, 1], [-1, 0], [-0.6, 0.8]], np.float32)
    close = close_atoms(W, 0)
    assert [n["atom"] for n in close["neighbours"]] == [1, 2, 4, 3]
    assert [n["atom"] for n in close["opposites"]] == [3, 4, 2, 1]
    assert close["neighbours"][0]["cosine"] == pytest.approx(0.8) and close_atoms(W[:1], 0) == {
        "neighbours": [],
        "opposites": [],
    }


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 60])
def test_any_number_of_atoms_has_a_map(count: int) -> None:
    W = np.random.default_rng(0).standard_normal((count, 6)).astype(np.float32)
    place = flat(W)
    assert place.shape == (count, 2) and np.isfinite(place).all() and (np.abs(place) <= 1).all()


def test_atoms_that_point_the_same_way_lie_close() -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((3, 16))
    W = np.repeat(centres, 20, axis=0) + 0.1 * rng.standard_normal((60, 16))
    place = flat(np.asarray(W / np.linalg.norm(W, axis=1, keepdims=True), np.float32))
    group = np.repeat(np.arange(3), 20)
    means = np.stack([place[group == g].mean(axis=0) for g in range(3)])
    assert (np.linalg.norm(place[:, None] - means, axis=2).argmin(axis=1) == group).all()
