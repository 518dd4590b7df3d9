"""The catalog as a SQLite file: sort, filter and search tens of thousands of atoms in milliseconds.

``catalog.sqlite`` in an ``.atoms`` folder is derived: it is made anew when the files it comes from have changed, and may be
deleted. Full-text search is SQLite's FTS5 (bm25 over label, tokens and examples). Search by meaning compares sentence
embeddings of the labels with the query's; they are made when they are first asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import tempfile
import threading
import zlib
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from gradatoms.catalog.layout import flat
from gradatoms.catalog.pages import close_atoms, every_page
from gradatoms.dictionary.base import Atoms
from gradatoms.dictionary.provenance import folder_of
from gradatoms.errors import ConfigError
from gradatoms.files import save_whole
from gradatoms.progress import Progress, silent

_log = logging.getLogger(__name__)

FILE = "catalog.sqlite"
_SOURCES = ("sae_weights.safetensors", "codes.h5", "metrics.json", "evidence.h5", "labels.jsonl", "scores.json")
_VERSION = 2
NUMBERS = ("density", "coherence", "stability", "gain", "detection", "fuzzing", "output", "confidence")
"""Columns with numbers; they can be filtered from below and from above."""
TEXTS = ("label", "verdict", "concept")
SORTS = ("atom", *TEXTS, *NUMBERS)
"""Columns to sort by."""
_JUDGED = ("detection", "fuzzing", "output", "confidence")


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which atoms, in which order.

    Raises:
        ConfigError: an unknown column.
    """

    text: str = ""
    """Words that label, tokens or examples must all hold (or begin with); best match first unless ``sort`` says otherwise."""
    sort: str = ""
    """A column; empty: by match where there is a text, else by atom. Numbers from the largest, the rest ascending."""
    reverse: bool = False
    least: Mapping[str, float] = field(default_factory=dict)
    """Least value of columns; an atom without a value is left out."""
    most: Mapping[str, float] = field(default_factory=dict)
    equal: Mapping[str, str] = field(default_factory=dict)
    """Text columns: what they must be."""
    limit: int = 50
    offset: int = 0

    def __post_init__(self) -> None:
        if self.sort and self.sort not in SORTS:
            raise ConfigError(f"expected a sort of {', '.join(SORTS)}, got {self.sort!r}")
        for names, known in ((self.least, NUMBERS), (self.most, NUMBERS), (self.equal, TEXTS)):
            for name in names:
                if name not in known:
                    raise ConfigError(f"expected a column of {', '.join(known)}, got {name!r}")


@dataclass(frozen=True)
class Found:
    """Some of the atoms that a query finds."""

    rows: list[dict[str, Any]]
    total: int
    """How many there are in all."""
    unread: int = 0
    """Labels that a search by meaning has not read yet."""


class Index:
    """A catalog that is open for reading; safe to use from several threads.

    Args:
        path: a file that ``write_index`` made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    @property
    def _db(self) -> sqlite3.Connection:
        if not hasattr(self._local, "db"):
            self._local.db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
            self._local.db.row_factory = sqlite3.Row
        db: sqlite3.Connection = self._local.db
        return db

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM atoms").fetchone()[0])

    def find(self, query: Query) -> Found:
        """The atoms of a query, one row each as ``pages.catalog`` gives them."""
        where, values = _where(query)
        source = "atoms"
        words = _fts(query.text)
        if query.text.strip():
            source = "words JOIN atoms ON atoms.atom = words.rowid"
            where, values = [*where, "words MATCH ?" if words else "0"], [*values, *([words] if words else [])]
        condition = " AND ".join(where)
        total = self._db.execute(f"SELECT count(*) FROM {source} WHERE {condition}", values).fetchone()[0]
        rows = self._db.execute(
            f"SELECT atoms.* FROM {source} WHERE {condition} ORDER BY {_order(query, bool(words))} LIMIT ? OFFSET ?",
            [*values, query.limit, query.offset],
        )
        return Found([self._told(row) for row in rows], int(total))

    def _told(self, row: sqlite3.Row) -> dict[str, Any]:
        plain = {name: row[name] for name in ("atom", *TEXTS, "density", "coherence", "stability", "gain", "x", "y")}
        shown = self._db.execute("SELECT shown FROM pages WHERE atom = ?", [row["atom"]]).fetchone()
        return plain | json.loads(shown[0])

    def row(self, atom: int) -> dict[str, Any] | None:
        found = self._db.execute("SELECT * FROM atoms WHERE atom = ?", [atom]).fetchone()
        return None if found is None else self._told(found)

    def rows(self, atoms: Iterable[int]) -> list[dict[str, Any]]:
        """Some rows, in the order asked for."""
        return [row for row in map(self.row, atoms) if row is not None]

    def page(self, atom: int) -> dict[str, Any] | None:
        """Everything about one atom but its neighbours (see ``pages.Sources.page``); None: no such atom."""
        found = self._db.execute("SELECT page FROM pages WHERE atom = ?", [atom]).fetchone()
        return None if found is None else json.loads(zlib.decompress(found[0]))

    def values(self, column: str) -> list[tuple[str, int]]:
        """The values of a text column and how many atoms have each, the most frequent first."""
        if column not in TEXTS:
            raise ConfigError(f"expected a column of {', '.join(TEXTS)}, got {column!r}")
        found = self._db.execute(
            f"SELECT {column}, count(*) AS n FROM atoms WHERE {column} != '' GROUP BY 1 ORDER BY n DESC, 1"
        )
        return [(str(value), int(count)) for value, count in found]

    def map(self, box: tuple[float, float, float, float] = (-1.0, 1.0, -1.0, 1.0), most: int = 3000) -> dict[str, Any]:
        """Columns for a map of what lies in a box (x from, to, y from, to): ``atom``, ``x``, ``y``, ``label``, ``verdict``, ``concept``.

        Of more than ``most`` atoms, evenly many by number; ``total`` says how many lie there.
        """
        names = ("atom", "x", "y", "label", "verdict", "concept")
        inside = "x BETWEEN ? AND ? AND y BETWEEN ? AND ?"
        total = self._db.execute(f"SELECT count(*) FROM atoms WHERE {inside}", box).fetchone()[0]
        every = max(1, -(-total // most))
        rows = self._db.execute(
            f"SELECT {', '.join(names)} FROM atoms WHERE {inside} AND atom % ? = 0 ORDER BY atom", [*box, every]
        ).fetchall()
        return {name: [row[i] for row in rows] for i, name in enumerate(names)} | {"total": total}

    def numbers(self, query: Query) -> Int[np.ndarray, " n"]:
        """The atoms that the filters of a query leave, whatever its text, ascending."""
        where, values = _where(query)
        rows = self._db.execute(f"SELECT atom FROM atoms WHERE {' AND '.join(where)} ORDER BY atom", values)
        return np.asarray([row[0] for row in rows], dtype=np.int64)

    def names(self) -> list[tuple[int, str]]:
        """The atoms that have a label, with it, by number."""
        return [
            (row[0], row[1])
            for row in self._db.execute("SELECT atom, label FROM atoms WHERE label != '' ORDER BY atom")
        ]

    def kept(self, key: str) -> bytes | None:
        """What ``keep`` put there."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchone()
        return None if row is None else bytes(row[0])

    def keep(self, key: str, value: bytes) -> None:
        """Keep something derived in the file; it goes when the index is made anew."""
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])


def open_index(atoms: Atoms, *, progress: Progress = silent) -> Index:
    """The index of a folder's atoms, made or made anew where it is missing or older than what it comes from.

    Raises:
        AtomsFormatError: a file of the folder is damaged.
    """
    folder = folder_of(atoms)
    path, digest = folder / FILE, _digest(folder)
    if _is_of(path, digest):
        return Index(path)

    def make(partial: Path) -> None:
        write_index(partial, atoms, digest=digest, progress=progress)

    try:
        save_whole(path, make)
    except (PermissionError, sqlite3.OperationalError) as error:
        if os.access(folder, os.W_OK):
            raise
        path = Path(tempfile.mkdtemp(prefix="gradatoms-")) / FILE
        _log.warning("%s cannot be written to (%s): its index is made in %s", folder, error, path.parent)
        save_whole(path, make)
    return Index(path)


def write_index(path: Path, atoms: Atoms, *, digest: str = "", progress: Progress = silent) -> None:
    """Write the index of ``atoms`` to a new file."""
    place = flat(atoms.W_dec)

    def rows() -> Iterable[tuple[dict[str, Any], dict[str, Any], tuple[float, float]]]:
        for (row, page), (x, y) in zip(every_page(atoms), place.tolist(), strict=True):
            yield row, page, (x, y)
            progress("catalog", row["atom"] + 1, len(atoms))

    write_rows(path, rows(), digest=digest)


def write_rows(
    path: Path, rows: Iterable[tuple[dict[str, Any], dict[str, Any], tuple[float, float]]], *, digest: str = ""
) -> None:
    """Write an index of (row, page, place on the map), a row at a time."""
    numbers = ", ".join(f"{name} REAL" for name in NUMBERS)
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(
            f"""
            PRAGMA journal_mode = OFF;
            CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB);
            CREATE TABLE atoms (atom INTEGER PRIMARY KEY, label TEXT, verdict TEXT, concept TEXT, {numbers},
                x REAL, y REAL);
            CREATE TABLE pages (atom INTEGER PRIMARY KEY, shown TEXT, page BLOB);
            CREATE VIRTUAL TABLE words USING fts5 (label, tokens, examples, content = '',
                tokenize = 'unicode61 remove_diacritics 2');
            """
        )
        columns = ("atom", *TEXTS, *NUMBERS, "x", "y")
        insert = f"INSERT INTO atoms ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        for row, page, (x, y) in rows:
            scores = row["scores"]
            numeric = [scores.get(name) if name in _JUDGED else row[name] for name in NUMBERS]
            shown = {key: row[key] for key in ("promoted", "demoted", "scores")}
            texts = [row[name] for name in TEXTS]
            db.execute(insert, [row["atom"], *texts, *map(_real, numeric), x, y])
            packed = zlib.compress(_json(page).encode(), 6)
            db.execute("INSERT INTO pages VALUES (?, ?, ?)", [row["atom"], _json(shown), packed])
            tokens = [t["token"] for key in ("promoted", "demoted") for t in page[key]]
            examples = [f"{e['prompt']} {e['target']}" for e in page["examples"]]
            db.execute(
                "INSERT INTO words (rowid, label, tokens, examples) VALUES (?, ?, ?, ?)",
                [row["atom"], row["label"], " ".join(tokens), "\n".join(examples)],
            )
        for name in SORTS[1:]:
            db.execute(f"CREATE INDEX down_{name} ON atoms ({name})")
            db.execute(f"CREATE INDEX up_{name} ON atoms ({_missing(name)}, {name})")
        db.execute("INSERT INTO meta VALUES ('digest', ?)", [digest])


def whole_page(index: Index, atoms: Atoms, atom: int) -> dict[str, Any]:
    """Everything about one atom, its neighbours and opposites with their labels among it.

    Raises:
        ConfigError: no such atom.
    """
    page = index.page(atoms[atom].index)
    assert page is not None
    close = close_atoms(atoms.W_dec, atom)
    named = {r["atom"]: r["label"] for r in index.rows({n["atom"] for some in close.values() for n in some})}
    return page | {key: [n | {"label": named[n["atom"]]} for n in some] for key, some in close.items()}


def _missing(name: str) -> str:
    """Whether a row has no value in a column."""
    return f"{name} IS NULL" if name in NUMBERS else f"{name} = ''"


def _order(query: Query, matched: bool) -> str:
    """What is missing comes last, both ways; written so that an index gives the order."""
    if not query.sort and matched:
        return "bm25(words, 4.0, 2.0, 1.0), atoms.atom"
    name = query.sort or "atom"
    if (name in NUMBERS) != query.reverse:
        return "atoms.atom DESC" if name == "atom" else f"{name} DESC, atom DESC"
    return "atoms.atom" if name == "atom" else f"{_missing(name)}, {name}, atom"


def _fts(text: str) -> str:
    """A query that looks for the words of a text, each perhaps the beginning of a longer one; nothing of it is syntax."""
    words = "".join(c if c.isalnum() else " " for c in text).split()
    return " ".join(f'"{word}"*' for word in words)


def _where(query: Query) -> tuple[list[str], list[Any]]:
    """The filters of a query as conditions that all hold, and their values."""
    where, values = ["1"], list[Any]()
    for names, sign in ((query.least, ">="), (query.most, "<="), (query.equal, "=")):
        for name, value in names.items():
            where.append(f"atoms.{name} {sign} ?")
            values.append(value)
    return where, values


def _real(value: Any) -> float | None:
    return None if value is None else float(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digest(folder: Path) -> str:
    """Changes when a file that the index comes from does."""
    told = [(name, s.st_size, s.st_mtime_ns) for name in _SOURCES if (s := _stat(folder / name)) is not None]
    return hashlib.sha256(repr((_VERSION, told)).encode()).hexdigest()


def _stat(path: Path) -> Any:
    return path.stat() if path.exists() else None


def _is_of(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'digest'").fetchone()
    except sqlite3.DatabaseError:
        return False
    return row is not None and row[0] == digest
