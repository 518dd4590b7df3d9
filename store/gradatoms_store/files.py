"""Files that survive a kill: atomic writes, fsync of files and folders, locks that end with their process."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import sys
from pathlib import Path

from gradatoms_store.errors import StoreFormatError

if sys.platform != "win32":
    import fcntl

PARTIAL = ".partial"
"""Suffix of a file that is being written; it counts for nothing until it is renamed."""

_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path) -> io.FileIO:
    """Open a file for reading that may be hostile: a link, a pipe that nobody writes to, a device.

    Raises:
        StoreFormatError: it is not a regular file.
        OSError: it cannot be opened.
    """
    kind = os.lstat(path).st_mode
    if not stat.S_ISREG(kind):  # asked before it is opened: that alone may hang, or set a device to work
        message = f"{path}: expected a regular file, found a link or another kind ({stat.filemode(kind)})"
        raise StoreFormatError(f"{message}; replace it by the file")
    return open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, _READ))


def fsync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, final: Path) -> None:
    """Give a partial file that was written and fsynced its name, and fsync the folder."""
    os.replace(partial, final)
    fsync_path(final.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: the old content or the new is there after a kill, never a part."""
    partial = path.with_name(path.name + PARTIAL)
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    publish(partial, path)


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock of an open file, if nobody has it.

    The lock belongs to the open file, also within one process, and ends when the descriptor closes or the process dies,
    however it dies. Where the system has no `flock`, every lock is free: keep to one writer there.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def try_share(descriptor: int) -> bool:
    """Take a shared lock of an open file or folder, if nobody has the exclusive one."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def unlock(descriptor: int) -> None:
    """Give up a lock now, also in forks that share the open file, and close it here."""
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename a file, or copy it and remove it where the target is on another device."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target)
        fsync_path(target)
        source.unlink()
