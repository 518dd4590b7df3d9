"""Run a coroutine in a thread of its own and iterate over what it hands out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
THREAD = "gradatoms-ask"
"""Name of the thread."""


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def iterate(run: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """What ``run(put)`` puts, as it comes. Closing the iterator, or an interrupt, cancels the coroutine and waits for its end.

    Raises:
        Exception: what the coroutine raised; of a group, the first.
    """
    handed: SimpleQueue[tuple[T] | _End] = SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(run(lambda value: handed.put((value,))))
    thread = threading.Thread(target=_drive, args=(loop, task, handed), name=THREAD, daemon=True)
    thread.start()
    try:
        while not isinstance(item := handed.get(), _End):
            yield item[0]
        if item.error is not None:
            raise item.error
    finally:
        with suppress(RuntimeError):  # the loop is closed: the coroutine has ended
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _drive(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None], queue: SimpleQueue[Any]) -> None:
    """Run the task to its end in this thread; the last thing put is how it ended."""
    end: BaseException | None = None
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    except BaseExceptionGroup as errors:
        end = errors.exceptions[0]
    except BaseException as error:  # raised in the thread that iterates
        end = error
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        queue.put(_End(end))
