"""Where the losses of a fit go: JSON lines in its folder, and a service only when asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

from gradatoms.dictionary.training import Log
from gradatoms.errors import ConfigError

LOGGERS = ("tensorboard", "wandb")


class Logs:
    """Open logs; ``of(name)`` is the log of one fit.

    Args:
        folder: holds ``log.jsonl``, one record a line, appended to; and what TensorBoard and wandb write.
        run: the name of the run there.
        to: ``tensorboard`` and ``wandb``; wandb uploads as its own settings say (``WANDB_MODE=offline`` keeps it here).
        quiet: write nothing (ranks but the first).

    Raises:
        ConfigError: an unknown logger, or one that is not installed.
    """

    def __init__(self, folder: Path, run: str, to: Sequence[str] = (), *, quiet: bool = False) -> None:
        unknown = [name for name in to if name not in LOGGERS]
        if unknown:
            raise ConfigError(f"expected loggers of {', '.join(LOGGERS)}, got {', '.join(unknown)}")
        self._folder, self._run, self._to, self._quiet = folder, run, to, quiet
        self._file: TextIOWrapper | None = None
        self._board: Any = None
        self._wandb: Any = None

    def __enter__(self) -> Logs:
        if not self._quiet:
            self._file = (self._folder / "log.jsonl").open("a", encoding="utf-8")
        try:
            if "tensorboard" in self._to:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self._folder / "tensorboard"))
            if "wandb" in self._to:
                import wandb

                self._wandb = wandb.init(project="gradatoms", name=self._run, dir=str(self._folder))
        except ImportError as error:
            self.__exit__(None, None, None)
            raise ConfigError(
                f"expected {error.name} to be installed for its log, it is not; pip install it"
            ) from error
        return self

    def of(self, name: str) -> Log:
        """The log of the fit ``name``."""

        def log(record: dict[str, Any]) -> None:
            if self._file is not None:
                self._file.write(json.dumps({"fit": name} | record) + "\n")
                self._file.flush()
            for key, value in record.items():
                if key != "step" and self._board is not None:
                    self._board.add_scalar(f"{name}/{key}", value, record["step"])
            if self._wandb is not None:
                self._wandb.log({f"{name}/{key}": value for key, value in record.items()})

        return log

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for held, close in ((self._file, "close"), (self._board, "close"), (self._wandb, "finish")):
            if held is not None:
                getattr(held, close)()
