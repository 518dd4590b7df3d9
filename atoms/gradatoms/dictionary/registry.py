"""The methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gradatoms.dictionary.base import FitConfig
from gradatoms.dictionary.kmeans import KMeansConfig
from gradatoms.dictionary.online import OnlineConfig
from gradatoms.dictionary.pca import PCAConfig
from gradatoms.dictionary.sae import (
    AbsTopKConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    StandardConfig,
)
from gradatoms.dictionary.topk import TopKConfig
from gradatoms.errors import ConfigError

METHODS: Mapping[str, type[FitConfig]] = {
    config.method: config
    for config in (
        OnlineConfig, TopKConfig, BatchTopKConfig, JumpReLUConfig, GatedConfig, StandardConfig, MatryoshkaConfig,
        MatchingPursuitConfig, AbsTopKConfig, PCAConfig, KMeansConfig,
    )
}  # fmt: skip


def make_config(method: str, settings: Mapping[str, Any]) -> FitConfig:
    """The config of ``method`` from plain settings; those that are None keep their default.

    Raises:
        ConfigError: unknown method or setting, or a value out of range.
    """
    if method not in METHODS:
        raise ConfigError(f"expected a method of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method].from_dict({k: v for k, v in settings.items() if v is not None})


def parse_settings(method: str, pairs: list[str]) -> dict[str, Any]:
    """``name=value`` texts as settings of ``method``, each of the type that its default has.

    Raises:
        ConfigError: not of that form, an unknown setting, or a value of another type.
    """
    config = make_config(method, {})
    known = {f.name: getattr(config, f.name) for f in fields(config)}
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            raise ConfigError(
                f"expected --set NAME=VALUE with a setting of {method} ({', '.join(known)}), got {pair!r}"
            )
        found[name] = _parsed(name, text, known[name])
    return found


def parse_grid(method: str, texts: Mapping[str, str], *, several: bool) -> dict[str, list[Any]]:
    """Lists such as ``128,256`` as values of settings of ``method``.

    Args:
        several: whether more than one value each is allowed.

    Raises:
        ConfigError: an unknown setting, a value of another type, or several where one is meant.
    """
    found: dict[str, list[Any]] = {}
    for name, text in texts.items():
        if "," in text and not several:
            raise ConfigError(f"expected one value for {name}, got {text}; several go with --sweep")
        found[name] = [parse_settings(method, [f"{name}={part}"])[name] for part in text.split(",")]
    return found


def _parsed(name: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.split(",") if part)
        if default is None or isinstance(default, int):
            return int(text)
        return float(text) if isinstance(default, float) else text
    except (ValueError, KeyError) as error:
        raise ConfigError(f"expected a value like {default!r} for {name}, got {text!r}") from error
