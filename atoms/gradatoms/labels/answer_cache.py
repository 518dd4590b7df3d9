"""Answers of chat models on disk, so that no request is paid for twice.

A folder (``$GRADATOMS_CACHE/answers``, else ``~/.cache/gradatoms/answers``) with one small JSON file an answer, named by
the SHA-256 of the request: ``ab/abcd….json``. A file is complete or absent at any moment. It holds the answer's text and
token counts, and never a key or the request itself. Delete files or the folder freely: answers are then asked for again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gradatoms.errors import ConfigError
from gradatoms.models import cache_dir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    text: str
    finish: str = ""
    """Why the text ended: ``stop``, ``length`` (cut off), ``content_filter``."""
    refusal: str = ""
    """The model's own words where it declined."""
    input_tokens: int | None = None
    """As the server counts them; None where it does not say."""
    output_tokens: int | None = None


def request_key(request: dict[str, Any]) -> str:
    """SHA-256 of a request, in hex."""
    return sha256(json.dumps(request, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class AnswerCache:
    """Replies by request key. Any number of processes may share a folder.

    Raises:
        ConfigError: the folder cannot be made or written to, found before anything is paid for.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_dir() / "answers" if folder is None else Path(folder)

    def prepare(self) -> None:
        """Make the folder, so that an answer that is paid for has a place."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"expected a folder for answers at {self.folder}, got: {error.strerror}; set GRADATOMS_CACHE"
            ) from error
        if not os.access(self.folder, os.W_OK):
            raise ConfigError(
                f"expected to write answers to {self.folder}, may not; set GRADATOMS_CACHE to another folder"
            )

    def get(self, key: str) -> Reply | None:
        """The reply to a request, or None. A damaged file counts as none."""
        path = self._path(key)
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            log.warning("%s holds no answer (%s); it is asked for again", path, error)
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; it is there, whole, when this returns."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
        partial.write_text(json.dumps(asdict(reply)), encoding="utf-8")
        partial.replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
