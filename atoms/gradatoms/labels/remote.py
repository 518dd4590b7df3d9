"""Any OpenAI-compatible endpoint as a chat model: concurrent, cached on disk, with retries and a hard budget."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatoms.errors import ConfigError
from gradatoms.labels.answer_cache import AnswerCache, Reply, request_key
from gradatoms.labels.background import iterate
from gradatoms.labels.budget import Budget, Estimate, Prices, count_tokens
from gradatoms.labels.chat import TRIES, Answer, Chat, NoAnswer, Question, settle
from gradatoms.labels.label import FailureKind
from gradatoms.labels.schema import one_line

if TYPE_CHECKING:
    from gradatoms.labels.wire import Dialect, Wire

DEFAULT_URL = "https://api.openai.com/v1"
_NO_USE = (401, 402, 404)
"""Answers after which no other request can fare better: a wrong key, no money, no such model."""
_GIVE_UP = 16
"""Questions in a row without a reply after which no more are sent."""

_Put = Callable[[tuple[int, Answer | NoAnswer]], None]


class RemoteChat(Chat):
    """A model behind an OpenAI-compatible server, such as ``openai:NAME``.

    Every reply is on disk before it is used, malformed ones too: a second run, also after a kill, asks only for what it
    has not seen. 408, 409, 425, 429, 5xx, timeouts and broken connections are tried again after
    ``backoff_s · 2^try`` seconds (halved to one and a half times at random), or as long as ``Retry-After`` says, at most
    ``longest_wait_s``. One ``ask`` at a time.

    Args:
        model: as the server calls it.
        base_url: default ``$OPENAI_BASE_URL``, else OpenAI's.
        api_key: default ``$OPENAI_API_KEY``. A server on this machine needs none.
        concurrency: requests at once.
        timeout_s: for a whole request.
        retries: further tries after a failure that may pass.
        budget_usd: hard limit in dollars over the life of this object; needs ``prices``.
        budget_tokens: hard limit in tokens, input and output together.
        prices: US dollars for a million input and a million output tokens.
        cache: folder of answers; default as ``answer_cache.py`` says.
        max_response_bytes: longer bodies are dropped, so that memory stays bounded.

    Raises:
        ConfigError: no key, no ``openai`` package, or a setting out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        retries: int = 5,
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        prices: tuple[float, float] | None = None,
        cache: Path | None = None,
        max_response_bytes: int = 1_000_000,
        backoff_s: float = 1.0,
        longest_wait_s: float = 60.0,
    ) -> None:
        if importlib.util.find_spec("openai") is None:
            raise ConfigError(
                "expected the openai package for a remote teacher, found none; pip install 'gradatoms[teacher]'"
            )
        if not model or concurrency < 1 or retries < 0 or timeout_s <= 0 or max_response_bytes < 1:
            raise ConfigError(
                "expected a model name, at least 1 request at once, 0 retries, some seconds and 1 byte, "
                f"got {model!r}, {concurrency}, {retries}, {timeout_s}, {max_response_bytes}"
            )
        from gradatoms.labels.wire import Dialect

        self.model, self.name = model, f"openai:{model}"
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip("/")
        self._api_key = _key_for(self.base_url, api_key)
        self.concurrency, self.timeout_s, self.retries = concurrency, timeout_s, retries
        self.max_response_bytes, self.backoff_s, self.longest_wait_s = max_response_bytes, backoff_s, longest_wait_s
        self.budget = Budget(budget_usd, budget_tokens, None if prices is None else Prices(*prices))
        self.cache = AnswerCache(cache)
        self._dialect, self._proven = Dialect(), False
        self._stop: NoAnswer | None = None
        self._in_vain = 0

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """What ``ask`` would send and cost; nothing is sent."""
        requests = cached = inputs = outputs = 0
        for members in self._distinct(questions).values():
            asked = self._next_request(questions[members[0]])
            if asked is None:
                cached += len(members)
            else:
                requests += 1
                inputs += _input_tokens(asked)
                outputs += asked.max_tokens
        prices = self.budget.prices
        return Estimate(requests, cached, inputs, outputs, prices.cost(inputs, outputs) if prices else None)

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer | NoAnswer]]:
        """(question, answer) as they arrive. Closing the iterator cancels what is under way."""
        self.cache.prepare()
        self._stop, self._in_vain = None, 0
        asked = list(questions)

        def run(put: _Put) -> Coroutine[Any, Any, None]:
            return self._run(asked, put)

        yield from iterate(run)

    async def _run(self, questions: list[Question], put: _Put) -> None:
        from gradatoms.labels.wire import Wire

        waiting = iter(self._distinct(questions).values())
        wire = Wire(
            model=self.model,
            base_url=self.base_url,
            api_key=self._api_key,
            timeout_s=self.timeout_s,
            most_bytes=self.max_response_bytes,
        )

        async def work() -> None:
            for members in waiting:
                answer = await self._answer(wire, questions[members[0]])
                for i in members:
                    put((i, answer))

        async with wire, asyncio.TaskGroup() as group:
            for _ in range(min(self.concurrency, len(questions))):
                group.create_task(work())

    async def _answer(self, wire: Wire, question: Question) -> Answer | NoAnswer:
        asked = question
        for tries in range(1, TRIES + 1):
            reply = await self._reply(wire, asked)
            if isinstance(reply, NoAnswer):
                return reply
            outcome = _outcome(reply, question, tries)
            if not isinstance(outcome, str):
                return outcome
            asked = question.again(tries, outcome)
        raise AssertionError("the last try is final")

    async def _reply(self, wire: Wire, question: Question) -> Reply | NoAnswer:
        """From the cache, else from the server, tried again where that may help."""
        from gradatoms.labels.wire import RequestFailedError

        key = self._request_key(question)
        cached = self.cache.get(key)
        if cached is not None:
            return cached
        for attempt in range(self.retries + 1):
            if self._stop is not None:
                return self._stop
            try:
                reply = await self._send(wire, question)
            except RequestFailedError as error:
                if not error.passing or attempt == self.retries:
                    return self._failed(error.kind, error.reason, error.status, attempt + 1)
                await asyncio.sleep(self._pause_s(attempt, error.wait_s))
            else:
                self.cache.put(key, reply)
                self._in_vain = 0
                return reply
        raise AssertionError("the last try is final")

    def _failed(self, kind: FailureKind, reason: str, status: int, tries: int) -> NoAnswer:
        """Why a question has no reply; keeps the rest from being sent where they would fare no better."""
        failure = NoAnswer(kind, reason if tries == 1 else f"{reason} (tried {tries} times)")
        self._in_vain += kind in ("server", "timeout")
        if status in _NO_USE:
            self._stop = failure
        elif self._in_vain >= _GIVE_UP:
            self._stop = NoAnswer("server", f"not sent: {_GIVE_UP} questions in a row had no reply, the last: {reason}")
        return failure

    async def _send(self, wire: Wire, question: Question) -> Reply:
        """One reply, in the first dialect that the server understands."""
        from gradatoms.labels.wire import Dialect, RequestFailedError

        while True:
            dialect = self._dialect
            try:
                reply = await self._send_paid(wire, question, dialect)
            except RequestFailedError as error:
                if error.status not in (400, 422):
                    raise
                if self._dialect == dialect:  # else another request has found the way meanwhile
                    plainer = dialect.plainer(error.reason, proven=self._proven)
                    if plainer is None:
                        self._dialect = dialect if self._proven else Dialect()
                        raise
                    self._dialect, self._proven = plainer, False
            else:
                self._proven = self._proven or self._dialect == dialect
                return reply

    async def _send_paid(self, wire: Wire, question: Question, dialect: Dialect) -> Reply:
        """Send, with what it may cost set aside first and what it did cost booked after."""
        from gradatoms.labels.wire import RequestFailedError

        estimated = _input_tokens(question)
        while (held := self.budget.hold(estimated, question.max_tokens)) is None:
            if self.budget.exhausted:
                raise RequestFailedError("budget", self.budget.reason())
            await asyncio.sleep(0.02)  # what others have set aside may come back
        try:
            reply = await wire.send(
                question.system, question.user, dialect.options(question.schema, question.max_tokens)
            )
        except RequestFailedError as error:
            if error.paid:
                self.budget.charge(held, None, None)
            else:
                self.budget.release(held)
            raise
        except BaseException:  # cancelled under way
            self.budget.charge(held, None, None)
            raise
        self.budget.charge(held, reply.input_tokens, reply.output_tokens)
        return reply

    def _pause_s(self, attempt: int, wait_s: float | None) -> float:
        chosen = self.backoff_s * 2**attempt * random.uniform(0.5, 1.5) if wait_s is None else wait_s
        return min(chosen, self.longest_wait_s)

    def _request_key(self, question: Question) -> str:
        """Of everything that shapes the answer; how a server wants it said is not part of it, nor is the key."""
        messages = [["system", question.system], ["user", question.user]]
        return request_key(
            {
                "base_url": self.base_url,
                "model": self.model,
                "messages": messages,
                "schema": question.schema,
                "temperature": 0,
                "max_tokens": question.max_tokens,
            }
        )

    def _distinct(self, questions: Sequence[Question]) -> dict[str, list[int]]:
        """Indices of questions that are one request, by its key."""
        groups: dict[str, list[int]] = {}
        for i, question in enumerate(questions):
            groups.setdefault(self._request_key(question), []).append(i)
        return groups

    def _next_request(self, question: Question) -> Question | None:
        """What would be sent first for a question; None where the cache settles it."""
        asked = question
        for tries in range(1, TRIES + 1):
            reply = self.cache.get(self._request_key(asked))
            if reply is None:
                return asked
            outcome = _outcome(reply, question, tries)
            if not isinstance(outcome, str):
                return None
            asked = question.again(tries, outcome)
        return None


def _outcome(reply: Reply, question: Question, tries: int) -> Answer | NoAnswer | str:
    """What a reply comes to: an answer, a failure, or the error to ask again with."""
    if reply.refusal or reply.finish == "content_filter":
        return NoAnswer("refused", f"the model declined: {one_line(reply.refusal) or 'content filter'}")
    outcome = settle(reply.text, question, tries)
    if isinstance(outcome, str) and reply.finish == "length":
        return f"the answer was cut off after {question.max_tokens} tokens; be shorter"
    return outcome


def _input_tokens(question: Question) -> int:
    return count_tokens(question.system, question.user, json.dumps(question.schema))


def _key_for(base_url: str, api_key: str | None) -> str:
    from gradatoms.labels.wire import is_loopback

    key = api_key or os.environ.get("OPENAI_API_KEY", "")
    if key:
        return key
    if is_loopback(base_url):
        return "none"
    raise ConfigError(
        f"expected a key for {base_url}, found none; set OPENAI_API_KEY, or OPENAI_BASE_URL to your own server"
    )
