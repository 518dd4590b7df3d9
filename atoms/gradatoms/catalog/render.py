"""Templates to pages. Everything that is put into one is escaped; a name that a template misspells is an error."""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from gradatoms.errors import ConfigError

_HERE = Path(__file__).parent
PLOTLY = "plotly.min.js"
STATIC = {path.name: path for path in sorted((_HERE / "static").iterdir()) if path.is_file()}
"""The server's own files by name."""


def rendered(template: str, **values: Any) -> str:
    """One page."""
    return _environment().get_template(template).render(**values)


def plotly_file() -> Path:
    """Plotly's script, as the Python package of that name carries it.

    Raises:
        ConfigError: plotly is not installed.
    """
    spec = importlib.util.find_spec("plotly")
    path = Path(spec.origin).parent / "package_data" / PLOTLY if spec and spec.origin else None
    if path is None or not path.exists():
        raise ConfigError("expected plotly for the plots, it is not installed; pip install 'gradatoms[catalog]'")
    return path


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"token": shown_token, "num": shown_number, "signed": signed, "plain": plain}
    return environment


def shown_token(text: str) -> str:
    """A token with its spaces and control characters to be seen."""
    return "".join("␣" if c == " " else c if c.isprintable() else repr(c)[1:-1] for c in text)


def plain(text: str) -> str:
    """A prompt or label with control characters to be seen (and none that turn the line round)."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown_number(value: Any, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
