"""Check a value against a JSON schema: the small part of JSON Schema that questions to chat models use."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from gradatoms.errors import ConfigError, GradAtomsError

Schema = dict[str, Any]

_KNOWN = frozenset(
    "type enum properties required additionalProperties items minItems maxItems minLength maxLength pattern minimum maximum "
    "description".split()
)
_PLAIN = frozenset("type enum properties required additionalProperties items description".split())
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that a line of text has no use for: control characters, text direction, halves of characters."""


class MalformedAnswerError(GradAtomsError, ValueError):
    """An answer is not of the form that was asked for; the message says where, in one line."""


def check(value: object, schema: Schema, where: str = "the answer") -> None:
    """Nothing, where ``value`` obeys ``schema``. Strings must be one printable line, whatever the schema says.

    Raises:
        MalformedAnswerError: it does not.
        ConfigError: the schema has a keyword that is not checked here.
    """
    unknown = sorted(set(schema) - _KNOWN)
    if unknown:
        raise ConfigError(f"expected schema keywords of {', '.join(sorted(_KNOWN))}, got {', '.join(unknown)}")
    kind = schema.get("type")
    if kind is not None and not _is_a(value, kind):
        raise MalformedAnswerError(f"expected {where} to be of type {kind}, got {shown(value)}")
    if "enum" in schema and value not in schema["enum"]:
        raise MalformedAnswerError(
            f"expected {where} to be one of {', '.join(map(str, schema['enum']))}, got {shown(value)}"
        )
    if isinstance(value, dict):
        _check_object(value, schema, where)
    elif isinstance(value, list):
        _check_bounds(len(value), schema.get("minItems"), schema.get("maxItems"), f"the number of items of {where}")
        for i, item in enumerate(value):
            check(item, schema.get("items", {}), f"item {i + 1} of {where}")
    elif isinstance(value, str):
        _check_string(value, schema, where)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_bounds(value, schema.get("minimum"), schema.get("maximum"), where)


def _is_a(value: object, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _check_object(value: dict[str, Any], schema: Schema, where: str) -> None:
    fields = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        raise MalformedAnswerError(f"expected {where} to have {', '.join(missing)}, found none")
    extra = [name for name in value if name not in fields]
    if extra and schema.get("additionalProperties") is False:
        raise MalformedAnswerError(f"expected {where} to have {', '.join(fields)}, got also {shown(extra[0])}")
    for name, item in value.items():
        check(item, fields.get(name, {}), name)


def _check_string(value: str, schema: Schema, where: str) -> None:
    if any(unicodedata.category(c) in _UNPRINTABLE for c in value):
        raise MalformedAnswerError(f"expected {where} to be one line of printable text, got {shown(value)}")
    _check_bounds(len(value), schema.get("minLength"), schema.get("maxLength"), f"the number of characters of {where}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        wanted = schema.get("description", f"text like {schema['pattern']}")
        raise MalformedAnswerError(f"expected {where} to be {wanted}, got {shown(value)}")


def _check_bounds(value: int | float, least: int | float | None, most: int | float | None, what: str) -> None:
    if not math.isfinite(value) or (least is not None and value < least) or (most is not None and value > most):
        low, high = "" if least is None else f"at least {least}", "" if most is None else f"at most {most}"
        raise MalformedAnswerError(
            f"expected {what} to be {' and '.join(filter(None, (low, high))) or 'finite'}, got {value}"
        )


def plain(schema: Schema) -> Schema:
    """The schema without lengths, bounds and patterns, which some servers refuse."""
    kept = {key: value for key, value in schema.items() if key in _PLAIN}
    if "properties" in kept:
        kept["properties"] = {name: plain(part) for name, part in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = plain(kept["items"])
    return kept


def shown(value: object, most: int = 60) -> str:
    """A value as an error shows it: one printable line, cut."""
    return one_line(f'"{value}"' if isinstance(value, str) else repr(value), most)


def one_line(text: str, most: int = 200) -> str:
    """``text`` as one printable line of at most so many characters."""
    head = " ".join(text[: 4 * most].split())
    line = "".join(c if unicodedata.category(c) not in _UNPRINTABLE else "�" for c in head)
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1] + "…"
