"""Files that survive a kill: atomic writes, fsync of files and folders, one writer at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gradatoms_store.errors import StoreError

if sys.platform != "win32":
    import fcntl

PARTIAL = ".partial"
"""Suffix of a file that is being written; it counts for nothing until it is renamed."""


def fsync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, final: Path) -> None:
    """Give a fully written partial file its name: fsync, rename, fsync of the folder."""
    fsync_path(partial)
    os.replace(partial, final)
    fsync_path(final.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: the old content or the new is there after a kill, never a part."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    publish(partial, path)


def lock_folder(path: Path) -> int:
    """Take the writer's lock on a store's folder; it is released when the descriptor closes or the process dies.

    Returns:
        The open descriptor that holds the lock.

    Raises:
        StoreError: another writer holds it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            message = f"{path}: expected to be its only writer, found another one at work; wait for it or stop it"
            raise StoreError(message) from None
    return descriptor
