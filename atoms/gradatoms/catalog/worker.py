"""The one place where the catalog's server computes: a model that loads when it is first needed, and one job at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from gradatoms.models import LoadedModel

T = TypeVar("T")
WAITING = 1
"""Jobs that may wait for the one that runs; more are turned away."""


class StoppedError(Exception):
    """Raised where the model is run for a job that was told to stop."""


class BusyError(Exception):
    """A job runs and another waits already."""


class Job:
    """Whether a job should go on; asked by the thread that computes."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()


class Worker:
    """Runs jobs one at a time in a thread of its own; between them, work that can wait.

    Args:
        load: loads the model; called once, by the first job.
    """

    def __init__(self, load: Callable[[], LoadedModel]) -> None:
        self._load = load
        self._model: LoadedModel | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalog-model")
        self._turn = asyncio.Lock()
        self._jobs = 0
        self._idle: asyncio.Task[None] | None = None
        self._aside: Job | None = None
        self._step: Callable[[LoadedModel, Job], bool] = lambda _, __: False

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._model is not None

    @property
    def full(self) -> bool:
        """Whether one more job would be turned away."""
        return self._jobs > WAITING

    async def run(self, job: Callable[[LoadedModel], T]) -> T:
        """What ``job(model)`` returns.

        Raises:
            BusyError: a job runs and another waits.
        """
        async with self._my_turn():
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: job(self._get()))

    async def stream(self, job: Callable[[LoadedModel, Job], Generator[T]]) -> AsyncGenerator[T, None]:
        """What ``job(model, job)`` yields, as it comes. Leaving early tells the job to stop, and waits for that.

        Raises:
            BusyError: a job runs and another waits.
        """
        async with self._my_turn():
            loop, state = asyncio.get_running_loop(), Job()
            queue: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()

            def put(item: tuple[T] | BaseException | None) -> None:
                loop.call_soon_threadsafe(queue.put_nowait, item)

            def work() -> None:
                try:
                    with closing(job(self._get(), state)) as items:  # what it changed of the model is put back here
                        for item in items:
                            put((item,))
                            if state.stopped:
                                break
                    put(None)
                except BaseException as error:  # raised again where the items are read
                    put(error)

            done = loop.run_in_executor(self._thread, work)
            try:
                while (item := await queue.get()) is not None:
                    if isinstance(item, BaseException):
                        raise item
                    yield item[0]
            finally:
                state.stop()
                await asyncio.shield(done)

    def when_idle(self, step: Callable[[LoadedModel, Job], bool]) -> None:
        """Call ``step(model, job)`` while no job wants the model, until it returns False; one that is under way starts anew.

        A job that comes stops the step, which is called again afterwards. The model raises ``StoppedError`` in a step that
        was told to stop, which counts as True; so a step must keep what it has done as it goes.
        """
        self._step = step
        if self._aside is not None:
            self._aside.stop()
        if self._idle is None or self._idle.done():
            self._idle = asyncio.ensure_future(self._work_aside())

    async def _work_aside(self) -> None:
        def work(job: Job) -> bool:
            loaded = self._get()

            def check(*_: object) -> None:
                if job.stopped:
                    raise StoppedError

            handle = loaded.model.register_forward_pre_hook(check)
            try:
                return self._step(loaded, job)
            except StoppedError:
                return True
            finally:
                handle.remove()

        more = True
        while more:
            async with self._turn:  # whoever waited for it comes first
                self._aside = job = Job()
                try:
                    more = await asyncio.get_running_loop().run_in_executor(self._thread, work, job)
                finally:
                    self._aside = None

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        if self.full:
            raise BusyError
        self._jobs += 1
        if self._aside is not None:
            self._aside.stop()
        try:
            async with self._turn:
                yield
        finally:
            self._jobs -= 1

    async def close(self) -> None:
        """Stop what runs between jobs, wait for the job that runs, and end the thread."""
        if self._idle is not None:
            self._idle.cancel()
        if self._aside is not None:
            self._aside.stop()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _get(self) -> LoadedModel:
        if self._model is None:
            self._model = self._load()
        return self._model
