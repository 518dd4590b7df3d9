"""Strict reading of the store's JSON files: every wrong, missing or unknown field is named with its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import xxhash

from gradatoms_store.errors import StoreFormatError

MAX_JSON_BYTES = 256 * 2**20
"""A larger `store.json` or sidecar is refused before it is read."""


def read_json(path: Path) -> str:
    """The text of a small JSON file of the store.

    Raises:
        StoreFormatError: not a regular file, too large, or not UTF-8.
    """
    if path.is_symlink() or not path.is_file():
        raise StoreFormatError(f"{path}: expected a regular file, found a link or another kind; replace it by the file")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise StoreFormatError(
            f"{path}: expected at most {MAX_JSON_BYTES} bytes, found {size}; do not trust this store"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StoreFormatError(
            f"{path}: expected UTF-8 text, found other bytes ({error}); the file is damaged"
        ) from None


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
        self.where = where
        if not isinstance(data, dict):
            self.fail("content", "a JSON object", data)
        self._data: dict[str, object] = dict(data)

    @classmethod
    def parse(cls, text: str, where: str) -> Fields:
        """Parse JSON text that must hold one object; NaN and Infinity are refused."""

        def refuse(constant: str) -> NoReturn:
            raise ValueError(f"{constant} is not JSON")

        try:
            return cls(json.loads(text, parse_constant=refuse), where)
        except (ValueError, RecursionError) as error:
            if isinstance(error, StoreFormatError):
                raise
            message = f"{where}: expected valid JSON, got {error}; the file is damaged, restore it from a copy"
            raise StoreFormatError(message) from None

    def fail(self, field: str, expected: str, got: object) -> NoReturn:
        """Refuse a field."""
        shown = repr(got)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        message = f"{self.where}: field {field!r} expected {expected}, got {shown}; the file is damaged or foreign"
        raise StoreFormatError(message)

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
            names = ", ".join(sorted(self._data))
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
