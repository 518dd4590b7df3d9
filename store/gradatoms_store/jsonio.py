"""Strict reading of the store's JSON files: every wrong, missing or unknown field is named with its file."""

from __future__ import annotations

import json
import os
import reprlib
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import xxhash

from gradatoms_store.errors import StoreFormatError
from gradatoms_store.files import open_regular

MAX_JSON_BYTES = 2**24
"""A larger `store.json` or sidecar is refused before it is read: a million work units take half of it."""

MAX_PARSED_BYTES = 100 * 2**20
"""JSON whose parts would take more memory, by a cautious estimate, is refused before it is parsed."""

MAX_DEPTH = 8
"""Objects and lists within each other; the format has four."""

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother = 2, 100, 100


def read_json(path: Path) -> str:
    """The text of a small JSON file of the store.

    Raises:
        StoreFormatError: not a regular file, too large, or not UTF-8.
    """
    try:
        with open_regular(path) as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, MAX_JSON_BYTES) + 1)
    except OSError as error:
        raise StoreFormatError(f"{path}: expected a readable file, got {error}; restore it from a copy") from error
    if len(content) > MAX_JSON_BYTES:
        raise StoreFormatError(f"{path}: expected at most {MAX_JSON_BYTES} bytes, got more; do not trust this store")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{path}: expected UTF-8 text, found other bytes ({error})"
        raise StoreFormatError(f"{message}; the file is damaged, restore it from a copy") from None


DIGEST = "digest"
"""Key of a file's own digest, in version 2 and later."""


def digest_of(data: Mapping[str, object]) -> str:
    """Hex xxh3_128 of JSON data as text: keys sorted at every level, no spaces, non-ASCII characters escaped."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


class Fields:
    """One JSON object, read key by key; `end()` refuses what is left over."""

    def __init__(self, data: object, where: str) -> None:
        """`data`: the parsed value; `where`: file (and field) for messages."""
        self.where = where if len(where) < 500 else f"{where[:500]}..."
        if not isinstance(data, dict):
            self.fail("content", "a JSON object", data)
        self._data: dict[str, object] = dict(data)

    @classmethod
    def parse(cls, text: str, where: str) -> Fields:
        """Parse JSON text that must hold one object, strictly.

        Refused are NaN and Infinity, a key twice in one object, halves of characters (a lone `\\ud800`), deep nesting, and
        text that would fill the memory.
        """
        parsed_bytes = 3 * sys.getsizeof(text) + 40 * text.count(",") + 110 * text.count('"')
        parsed_bytes += 80 * (text.count("[") + text.count("{"))
        try:
            if parsed_bytes > MAX_PARSED_BYTES:
                raise ValueError(f"about {parsed_bytes} bytes of values, {MAX_PARSED_BYTES} are allowed")
            data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
            _refuse_deep(data, MAX_DEPTH)
        except (ValueError, RecursionError) as error:
            message = f"{where}: expected valid JSON, got {error}; the file is damaged, restore it from a copy"
            raise StoreFormatError(message) from None
        return cls(data, where)

    def fail(self, field: str, expected: str, got: object) -> NoReturn:
        """Refuse a field."""
        message = f"{self.where}: field {_SHOWN.repr(field)} expected {expected}, got {_SHOWN.repr(got)}"
        raise StoreFormatError(f"{message}; the file is damaged or foreign")

    def take(self, field: str) -> object:
        """The raw value of a field that must be there."""
        if field not in self._data:
            raise StoreFormatError(f"{self.where}: field {field!r} is missing; the file is damaged or foreign")
        return self._data.pop(field)

    def text(self, field: str) -> str:
        """A string."""
        value = self.take(field)
        return value if isinstance(value, str) else self.fail(field, "a string", value)

    def integer(self, field: str, minimum: int = 0) -> int:
        """An integer of at least `minimum`."""
        value = self.take(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum or value >= 2**63:
            self.fail(field, f"an integer from {minimum} to 2^63 - 1", value)
        return value

    def number(self, field: str) -> float:
        """A finite number, as float."""
        value = self.take(field)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
            self.fail(field, "a finite number", value)
        return float(value)

    def optional_number(self, field: str) -> float | None:
        """A number or null."""
        if self._data.get(field, 0) is None:
            del self._data[field]
            return None
        return self.number(field)

    def without(self, field: str) -> dict[str, object]:
        """All that is left but one field."""
        return {key: value for key, value in self._data.items() if key != field}

    def equal(self, field: str, expected: str) -> None:
        """Take a string that must be this one."""
        found = self.text(field)
        if found != expected:
            self.fail(field, repr(expected), found)

    def names(self) -> list[str]:
        """The keys not taken yet."""
        return list(self._data)

    def items(self, field: str) -> list[object]:
        """A list."""
        value = self.take(field)
        return value if isinstance(value, list) else self.fail(field, "a list", value)

    def integers(self, field: str) -> list[int]:
        """A list of integers, each 0 or more."""
        value = self.items(field)
        out = [item for item in value if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63]
        return out if len(out) == len(value) else self.fail(field, "a list of integers, each 0 or more", value)

    def mapping(self, field: str) -> dict[str, object]:
        """An object."""
        value = self.take(field)
        return value if isinstance(value, dict) else self.fail(field, "an object", value)

    def end(self) -> None:
        """Refuse keys that nobody took."""
        if self._data:
            names = ", ".join(ascii(key)[1:-1][:60] for key in sorted(self._data)[:10])
            message = (
                f"{self.where}: unknown field(s) {names}; the file is foreign or made by a newer gradatoms: upgrade"
            )
            raise StoreFormatError(message)

    def version(self, expected_format: str, newest: int) -> int:
        """Check `format` and `schema_version`, which every JSON file of the store begins with."""
        found = self.text("format")
        if found != expected_format:
            self.fail("format", repr(expected_format), found)
        version = self.integer("schema_version", 1)
        if version > newest:
            message = f"{self.where}: field 'schema_version' is {version}, this gradatoms reads up to {newest}"
            raise StoreFormatError(f"{message}; made by a newer gradatoms: upgrade")
        return version


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which is not JSON")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object's keys and values."""
    out = dict(pairs)
    if len(out) != len(pairs):
        key, times = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {_SHOWN.repr(key)} {times} times")
    for key, value in pairs:
        for text in (key, value):
            if isinstance(text, str) and not text.isascii():
                text.encode()  # fails for half a character
    return out


def _refuse_deep(value: object, depth: int) -> None:
    if isinstance(value, dict | list):
        if depth == 0:
            raise ValueError(f"more than {MAX_DEPTH} objects and lists within each other")
        inside = value.values() if isinstance(value, dict) else value
        if not {dict, list}.isdisjoint(map(type, inside)):
            for item in inside:
                _refuse_deep(item, depth - 1)
