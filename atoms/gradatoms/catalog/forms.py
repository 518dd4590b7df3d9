"""What a request asks for, checked: queries, chosen atoms and forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args
from urllib.parse import parse_qs

from fastapi import Request

from gradatoms.catalog.guard import same
from gradatoms.catalog.index import NUMBERS, TEXTS, Index, Query
from gradatoms.dictionary.base import Atoms
from gradatoms.errors import ConfigError

PAGE = 50
"""Atoms a page."""
MAX_TEXT = 2000
"""Characters of a text that is typed in."""
BUSY = "the model is at work for someone else and another waits; try again in some seconds"


class ForbiddenError(Exception):
    """A request that computes, without the token."""


def query_of(asked: Mapping[str, str]) -> Query:
    """The catalog page's query: ``q``, ``sort``, ``reverse``, ``page``, ``COLUMN`` for texts, ``COLUMN_min`` and ``COLUMN_max``."""
    least = {name: _number(asked[f"{name}_min"]) for name in NUMBERS if asked.get(f"{name}_min", "").strip()}
    most = {name: _number(asked[f"{name}_max"]) for name in NUMBERS if asked.get(f"{name}_max", "").strip()}
    return Query(
        text=asked.get("q", "")[:MAX_TEXT],
        sort=asked.get("sort", ""),
        reverse=asked.get("reverse") == "1",
        least=least,
        most=most,
        equal={name: asked[name] for name in TEXTS if asked.get(name)},
        limit=PAGE,
        offset=PAGE * (max(1, _whole(asked.get("page", "1"), 10**6)) - 1),
    )


def box_of(asked: Mapping[str, str]) -> tuple[float, float, float, float]:
    """The part of the map in view."""
    x0, x1, y0, y1 = (
        _number(asked[name]) if name in asked else default
        for name, default in (("x0", -1.0), ("x1", 1.0), ("y0", -1.0), ("y1", 1.0))
    )
    return x0, x1, y0, y1


def chosen_atoms(text: str, count: int) -> list[int]:
    """Atoms by number, such as ``17,23``; what is none of this dictionary's is left out."""
    found = [int(part) for part in text.replace(" ", ",").split(",") if part.isdigit() and len(part) < 9]
    return list(dict.fromkeys(a for a in found if a < count))[:8]


async def read_form(request: Request, token: str) -> dict[str, str]:
    """The fields of a form that carries the token.

    Raises:
        ForbiddenError: it does not.
    """
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100)
    form = {name: values[-1] for name, values in fields.items()}
    given = request.headers.get("x-token") or form.pop("token", None)
    if not same(given, token):
        raise ForbiddenError
    return form


def texts_of(asked: Mapping[str, str]) -> dict[str, str]:
    """Prompt, target, foil and context of the gradient page.

    Raises:
        ConfigError: no prompt or target, or one that is too long.
    """
    found = {name: asked.get(name, "") for name in ("prompt", "target", "foil", "context")}
    for name, text in found.items():
        if len(text) > MAX_TEXT or (name in ("prompt", "target") and not text.strip()):
            raise ConfigError(f"expected a {name} of 1 to {MAX_TEXT} characters, got {len(text)}")
    return found


def ride_of(asked: Mapping[str, str], atoms: Atoms, index: Index) -> Any:
    """A ``wheel.Ride`` from the steer page's fields: ``prompt``, ``atoms``, ``alpha_N``, ``auto``, ``kl``, ``operator``, ``way`` …

    Raises:
        ConfigError: beyond a cap, or no atom of this dictionary.
    """
    from gradatoms.catalog.wheel import MAX_TOKENS, Ride
    from gradatoms.steering import Operator, Positions
    from gradatoms.weight_steps import Way

    chosen = chosen_atoms(asked.get("atoms", ""), len(atoms))
    if not chosen:
        raise ConfigError(f"expected atoms from 0 to {len(atoms) - 1}, got {asked.get('atoms', '')[:40]!r}")
    ways = {"operator": ("add", Operator), "positions": ("last", Positions), "way": ("documents", Way)}
    how = {name: asked.get(name, default) for name, (default, _) in ways.items()}
    for name, (_, known) in ways.items():
        if how[name] not in get_args(known):
            raise ConfigError(f"expected {name} {', '.join(get_args(known))}, got {how[name][:40]!r}")
    page = index.page(chosen[0]) or {}
    seed = asked.get("seed", "").strip()
    return Ride(
        prompt=asked.get("prompt", ""),
        atoms=tuple(chosen),
        alpha=tuple(_number(asked.get(f"alpha_{a}", "") or "1") for a in chosen),
        kl=_number(asked.get("kl", "0.5")) if asked.get("auto") == "1" else None,
        operator=cast("Operator", how["operator"]),
        positions=cast("Positions", how["positions"]),
        way=cast("Way", how["way"]),
        max_tokens=_whole(asked.get("max_tokens", "40"), MAX_TOKENS),
        seed=_whole(seed, 2**31) if seed else None,
        targets=tuple((e["prompt"], e["target"]) for e in page.get("examples", ())),
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"expected a number, got {text[:40]!r}")
    return value


def _whole(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12) or int(text) > most:
        raise ConfigError(f"expected a whole number up to {most}, got {text[:40]!r}")
    return int(text)
