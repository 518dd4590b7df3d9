"""What a gradient store holds: its header (`store.json`), its rows and its examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from numpy import float32, int32, int64
from numpy.typing import NDArray

from gradatoms_store.errors import StoreFormatError, StoreNotFoundError, StoreValueError
from gradatoms_store.jsonio import DIGEST, Fields, digest_of, read_json

SCHEMA_VERSION = 2
"""Version of the format that this package gives new stores, and the newest that it reads; older ones it reads too."""

VERSION_FIELD = "schema_version"
STORE_FILE = "store.json"
STORE_FORMAT = "gradatoms-store"
DTYPES = ("float16", "bfloat16", "float32")
SPACES = ("activation", "weights")
ROW_FIELDS = {"example": "<i8", "position": "<i4", "token": "<i4", "target": "<i4", "loss": "<f4"}
"""Fields of a row beside its gradient, with the dtype on disk."""

PLAN_FIELDS = ("plan", "n_units", "n_examples", "seed")
"""Fields of the header that say which examples there are and how they are divided, not of what kind the rows are."""

FINGERPRINT_FIELDS = ("model", "hooks", "objective", "positions", "dtype", "space", "plan")


ACTIVATION = ":activation"
"""End of the name of a hook that holds the activation h itself, at the same rows as the gradient beside it."""
SKETCH = ":sketch"
"""End of the name of a hook that holds a random projection of the whole gradients behind the rows beside it."""

MAX_NAME_BYTES = 255
MAX_NAMES_BYTES = 2**18
"""Longest name of a hook, and most bytes of all names with 24 more for each: half of what the index of a group holds."""


@dataclass(frozen=True, kw_only=True)
class HookSpec:
    """One site whose gradient is stored."""

    name: str
    """TransformerLens name, such as `blocks.14.hook_resid_post`; an HDF5 link name, so no `/`."""
    hf_name: str
    """Name of the Hugging Face module whose output it is, such as `model.layers.14`; or input, with `:input` behind."""
    d: int
    """Width of a gradient at this hook (d_model for the residual stream)."""

    def __post_init__(self) -> None:
        plain = self.name.isprintable() and "/" not in self.name and self.name not in ("", ".", "..")
        if not plain or len(self.name.encode()) > MAX_NAME_BYTES:
            wanted = f"printable text of at most {MAX_NAME_BYTES} bytes without '/' that is not '.' or '..'"
            message = f"hook name expected {wanted}, got {self.name!a}"
            raise StoreValueError(f"{message:.300}; rename the hook")
        if self.d < 1:
            raise StoreValueError(f"hook {self.name!r}: d expected 1 or more, got {self.d}; give the gradient's width")


@dataclass(frozen=True, kw_only=True)
class StoreHeader:
    """The contents of `store.json`: what every row of the store has in common."""

    model: dict[str, str | int]
    """Fingerprint fields of the model, such as name, sha and d_model."""
    hooks: tuple[HookSpec, ...]
    """The hooks, at least one, with distinct names."""
    objective: str
    """J whose gradient is stored: `nll`, `contrast`, or a later one."""
    positions: str
    """Which positions became rows: `last`, `prediction`, ..."""
    dtype: str = "float16"
    """Stored dtype of the unit directions: float16, bfloat16 or float32."""
    space: str = "activation"
    """`activation` or `weights`."""
    plan: str
    """Digest (hex) of the examples and of their layout in work units."""
    n_units: int
    """Number of work units; the store is complete when all are committed."""
    n_examples: int
    """Number of examples in the plan; every example id is below it."""
    seed: int = 0
    """Seed of the permutation of the rows within each shard."""
    schema_version: int = SCHEMA_VERSION
    """Version of the format that the store is written in."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hooks", tuple(self.hooks))
        names = [hook.name for hook in self.hooks]
        if not names or len(set(names)) != len(names):
            raise StoreValueError(f"hooks expected one or more distinct names, got {names}; name each hook once")
        room = sum(len(name.encode()) + 24 for name in names)
        if room > MAX_NAMES_BYTES:
            message = f"hooks expected names of at most {MAX_NAMES_BYTES} bytes together, 24 more for each, got {room}"
            raise StoreValueError(f"{message}; divide the hooks among several stores")
        for key, value in self.model.items():
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise StoreValueError(f"model field {key!r} expected text or an integer, got {value!r}; convert it")
        for field, choices in (("dtype", DTYPES), ("space", SPACES)):
            if getattr(self, field) not in choices:
                raise StoreValueError(
                    f"{field} expected one of {choices}, got {getattr(self, field)!r}; choose one of them"
                )
        for field in ("objective", "positions", "plan"):
            if not getattr(self, field):
                raise StoreValueError(f"{field} expected text, got an empty string; name it")
        if not 1 <= self.schema_version <= SCHEMA_VERSION:
            message = f"schema_version expected 1 to {SCHEMA_VERSION}, got {self.schema_version}"
            raise StoreValueError(f"{message}; leave it out to write the newest")
        for field in ("n_units", "n_examples", "seed"):
            if getattr(self, field) < 0:
                raise StoreValueError(f"{field} expected 0 or more, got {getattr(self, field)}; correct it")

    @property
    def fingerprint(self) -> str:
        """Hex xxh3_128 of model, hooks, objective, positions, dtype, space and plan."""
        return digest_of({field: _plain(getattr(self, field)) for field in FINGERPRINT_FIELDS})

    def hook(self, name: str) -> HookSpec:
        """The hook of this name.

        Raises:
            StoreValueError: there is none; names those that there are.
        """
        for hook in self.hooks:
            if hook.name == name:
                return hook
        valid = ", ".join(hook.name for hook in self.hooks)
        raise StoreValueError(f"hook expected one of: {valid}; got {name!r}; choose one of them")

    def differences(self, other: StoreHeader, *, plan: bool = True) -> list[str]:
        """One text for each field in which the two headers differ: `dtype: float16 here, float32 there`.

        Args:
            other: the header to compare with.
            plan: compare plan, n_units, n_examples and seed too; without them, no difference means rows of one kind,
                of different examples perhaps.
        """
        mine, theirs = _flat(self), _flat(other)
        skipped = () if plan else PLAN_FIELDS
        keys = [key for key in dict.fromkeys([*mine, *theirs]) if key not in skipped]
        missing = "absent"
        return [
            f"{key}: {mine.get(key, missing)} here, {theirs.get(key, missing)} there"
            for key in keys
            if mine.get(key, missing) != theirs.get(key, missing)
        ]

    def to_json(self) -> str:
        """The text of `store.json`."""
        data = {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.name != VERSION_FIELD}
        data = {"format": STORE_FORMAT, VERSION_FIELD: self.schema_version, **data}
        return json.dumps(data if self.schema_version == 1 else data | {DIGEST: digest_of(data)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "store.json") -> StoreHeader:
        """Read `store.json`.

        Args:
            text: content of the file.
            where: the file's name, for messages.

        Raises:
            StoreFormatError: damaged, foreign or of a future version; names the file and the field.
        """
        data = Fields.parse(text, where)
        digest = digest_of(data.without(DIGEST))
        version = data.version(STORE_FORMAT, SCHEMA_VERSION)
        hooks = []
        for number, item in enumerate(data.items("hooks")):
            hook = Fields(item, f"{where}: hooks[{number}]")
            arguments: dict[str, Any] = {
                "name": hook.text("name"),
                "hf_name": hook.text("hf_name"),
                "d": hook.integer("d", 1),
            }
            hook.end()
            hooks.append(arguments)
        values: dict[str, Any] = {"model": data.mapping("model"), VERSION_FIELD: version}
        values |= {field: data.text(field) for field in ("objective", "positions", "dtype", "space", "plan")}
        values |= {field: data.integer(field) for field in ("n_units", "n_examples", "seed")}
        if version > 1:
            data.equal(DIGEST, digest)
        data.end()
        try:
            return cls(hooks=tuple(HookSpec(**hook) for hook in hooks), **values)
        except StoreValueError as error:
            raise StoreFormatError(f"{where}: {error}; the file is damaged or foreign") from None


def read_header(path: Path) -> StoreHeader:
    """The header of the store at `path`.

    Raises:
        StoreNotFoundError: no store there. StoreFormatError: its `store.json` is damaged, foreign or newer.
    """
    if not path.is_dir():
        raise StoreNotFoundError(
            f"{path}: expected the folder of a gradient store, found none; check the path or harvest it"
        )
    file = path / STORE_FILE
    if not file.exists():
        message = f"{path}: expected a {STORE_FILE} in the folder, found none"
        raise StoreNotFoundError(
            f"{message}; this is no gradient store, or its first moment was cut off: choose another path"
        )
    return StoreHeader.from_json(read_json(file), str(file))


def _plain(value: object) -> object:
    return [asdict(hook) for hook in value] if isinstance(value, tuple) else value


def _flat(header: StoreHeader) -> dict[str, str]:
    """Field name to shown value, with one entry for each model field and each hook."""
    out = {f"model.{key}": repr(value) for key, value in header.model.items()}
    for hook in header.hooks:
        out[f"hook {hook.name}"] = f"({hook.hf_name}, d {hook.d})"
    out["hook order"] = " ".join(hook.name for hook in header.hooks)
    for field in fields(header):
        if field.name not in ("model", "hooks", VERSION_FIELD):
            out[field.name] = str(getattr(header, field.name))
    return out


@dataclass(frozen=True, kw_only=True)
class ExampleRecord:
    """One example as it is kept beside its rows."""

    id: int
    """Number that `rows/example` refers to; unique in the store, 0 or more."""
    prompt: str
    target: str
    foil: str | None
    """The other answer of a contrast objective, or None."""
    concept: str | None
    """Ground-truth concept, for scoring only, or None."""
    meta: str
    """A JSON object as text."""


@dataclass(frozen=True, kw_only=True)
class GradientBlock:
    """The rows of one work unit, n of them, as the harvest hands them over."""

    gradients: Mapping[str, NDArray[float32]]
    """Hook name to raw gradients g = dJ/dh, shape (n, d), not normalised."""
    example: NDArray[int64]
    """Example id of each row, shape (n,)."""
    position: NDArray[int32]
    """Token position of each row in its example, shape (n,)."""
    token: NDArray[int32]
    """Token id at that position, shape (n,)."""
    target: NDArray[int32]
    """Token id that is to be predicted, shape (n,)."""
    loss: NDArray[float32]
    """The objective in nats, shape (n,)."""


@dataclass(frozen=True)
class GradientBatch:
    """Rows read from a store, n of them."""

    gradients: NDArray[float32]
    """Unit rows g / |g|, shape (n, d); unit up to the rounding of the stored dtype; a zero gradient's row is zeros."""
    norms: NDArray[float32]
    """|g| of each row, shape (n,); `gradients * norms[:, None]` is the raw gradient."""
    rows: dict[str, NDArray[Any]]
    """Row fields example, position, token, target, loss, each of shape (n,)."""
    index: NDArray[int64]
    """Global row numbers in the store, shape (n,)."""
