"""Stages of a writer's work, counted inside its process, so that a fault can strike at an exact one.

A stage is the moment before one operation on a file of the store: `write N.h5.partial`, `rename N.json.partial`,
`sync shards`, `lock claim`, ... Opening, renaming, removing and locking are seen through Python's audit events; fsync,
pwrite and each write of a file's bytes are wrapped. Once installed, it stays until the process ends. Linux only, where
`/proc` tells the path of an open file.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CLAIM = re.compile(r"[0-9a-f]{16}\.json")
_NUMBER = re.compile(r"[0-9]{5,9}(?=\.)")
_PATH_EVENTS = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.truncate": "truncate"}

COMMIT = (
    "open N.h5.partial",
    "write N.h5.partial",
    "sync N.h5.partial",
    "rename N.h5.partial",
    "open N.json.partial",
    "write N.json.partial",
    "sync N.json.partial",
    "rename N.json.partial",
    "sync shards",
    "pwrite claim",
    "lock lock",
)
"""Stages that every commit must go through; a store that writes otherwise needs this harness changed."""


@dataclass
class Stages:
    """Counts stages and acts at one of them."""

    store: Path
    name: str | None = None
    """Stage to act at; None for any."""
    occurrence: int = 0
    """The how-manieth of that name; 0 to only count."""
    act: Callable[[str], None] | None = None
    """What to do there; told the stage."""
    fatal: bool = False
    """The act ends the process, so that half of the operation may be done before."""
    order: list[str] = field(default_factory=list)
    """Stages reached so far."""
    _seen: int = 0
    _struck: bool = False
    _lock: Any = field(default_factory=threading.RLock)

    def install(self) -> None:
        """Begin to count, in this process, for good."""
        self._root = os.path.abspath(self.store)
        fsync, pwrite, plain_open = os.fsync, os.pwrite, builtins.open

        def counted_fsync(descriptor: int) -> None:
            self._reached("sync", descriptor)
            fsync(descriptor)

        def counted_pwrite(descriptor: int, data: bytes, offset: int) -> int:
            self._reached("pwrite", descriptor, lambda: pwrite(descriptor, data[: len(data) // 2], offset))
            return pwrite(descriptor, data, offset)

        def counted_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if mode not in ("w", "wb") or self._label(file) is None:
                return plain_open(file, mode, *arguments, **options)
            buffered = io.BufferedWriter(_Raw(file, self))
            return buffered if mode == "wb" else io.TextIOWrapper(buffered, **options)

        os.fsync, os.pwrite, builtins.open = counted_fsync, counted_pwrite, counted_open  # type: ignore[assignment]
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            self._reached("open" if flags & os.O_ACCMODE else "read", arguments[0])
        elif event in _PATH_EVENTS:
            self._reached(_PATH_EVENTS[event], arguments[0])
        elif event == "fcntl.flock":
            self._reached("lock", arguments[0])

    def _reached(self, verb: str, target: Any, half: Callable[[], object] | None = None) -> None:
        """A stage; `half` does half of the operation, which is what a kill in the middle of it leaves."""
        label = self._label(target)
        if label is None or self._struck:
            return
        stage = f"{verb} {label}"
        with self._lock:
            self.order.append(stage)
            self._seen += self.name in (None, stage)
            if self._struck or not self.occurrence or self._seen != self.occurrence:
                return
            self._struck = True
        if half is not None and self.fatal and self.occurrence % 2:
            half()
        assert self.act is not None
        self.act(stage)

    def _label(self, target: Any) -> str | None:
        """A file of the store, with its number left out; None for any other file."""
        if isinstance(target, int):
            try:
                target = os.readlink(f"/proc/self/fd/{target}")
            except OSError:
                return None
        path = os.path.abspath(os.fsdecode(target))
        if path != self._root and not path.startswith(self._root + os.sep):
            return None
        name = os.path.basename(path) if path != self._root else "store"
        return "claim" if _CLAIM.fullmatch(name) else _NUMBER.sub("N", name)


class _Raw(io.FileIO):
    """A file whose writes are stages."""

    def __init__(self, path: Any, stages: Stages) -> None:
        super().__init__(path, "w")
        self._stages = stages

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        self._stages._reached("write", self.name, lambda: super(_Raw, self).write(view[: len(view) // 2]))
        return super().write(view)

    def truncate(self, size: int | None = None, /) -> int:
        self._stages._reached("truncate", self.name)
        return super().truncate(size)
