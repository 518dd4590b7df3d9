"""One request to an OpenAI-compatible server: what is sent, what comes back, and which failures may pass.

Needs the ``openai`` package; ``remote.py`` imports this module when it is first used.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import httpx2
import openai

from gradatoms.labels.answer_cache import Reply
from gradatoms.labels.label import FailureKind
from gradatoms.labels.schema import one_line, plain

_NOT_PAID = (408, 409, 425, 429)


@dataclass(frozen=True)
class Dialect:
    """Which of the ways to say the same request a server understands."""

    form: Literal["json_schema", "json_object", "none"] = "json_schema"
    """``response_format``: how the form of the answer is asked for, besides the prompt."""
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True

    def plainer(self, complaint: str, *, proven: bool) -> Dialect | None:
        """What to try after a server refused this one; None where the request itself must be at fault.

        Args:
            complaint: what the server said.
            proven: it has answered other requests in this dialect.
        """
        if self.limit == "max_tokens" and "max_completion_tokens" in complaint:
            return replace(self, limit="max_completion_tokens")
        if self.temperature and "temperature" in complaint:
            return replace(self, temperature=False)
        if self.form != "none" and (not proven or "response_format" in complaint):
            return replace(self, form="json_object" if self.form == "json_schema" else "none")
        return None

    def options(self, schema: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        """The parts of the request that differ between dialects."""
        options: dict[str, Any] = {self.limit: max_tokens}
        if self.temperature:
            options["temperature"] = 0
        if self.form == "json_schema":
            described = {"name": "answer", "strict": True, "schema": plain(schema)}
            options["response_format"] = {"type": "json_schema", "json_schema": described}
        elif self.form == "json_object":
            options["response_format"] = {"type": "json_object"}
        return options


class RequestFailedError(Exception):
    """A request had no usable reply."""

    def __init__(
        self,
        kind: FailureKind,
        reason: str,
        *,
        passing: bool = False,
        paid: bool = False,
        status: int = 0,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.passing, self.paid, self.status = kind, reason, passing, paid, status
        """``passing``: it may be gone on another try. ``paid``: the server may have charged for it."""
        self.wait_s = wait_s
        """How long the server asks to wait."""


class _TooLargeError(httpx2.TransportError):
    pass


class _Capped(httpx2.AsyncByteStream):
    """A response body that ends with an error after so many bytes, so that memory stays bounded."""

    def __init__(self, stream: httpx2.AsyncByteStream, most_bytes: int) -> None:
        self._stream, self._most = stream, most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._stream:
            read += len(chunk)
            if read > self._most:
                raise _TooLargeError(f"a body of more than {self._most} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class Wire:
    """Sends requests through ``openai.AsyncOpenAI``, one try each. An async context manager."""

    def __init__(self, *, model: str, base_url: str, api_key: str, timeout_s: float, most_bytes: int) -> None:
        self._model, self._key, self._timeout_s, self._most = model, api_key, timeout_s, most_bytes
        http = openai.DefaultAsyncHttpxClient(
            event_hooks={"response": [self._cap]},
            headers={"Accept-Encoding": "identity"},
            trust_env=not is_loopback(base_url),
        )
        self._client = openai.AsyncOpenAI(
            api_key=api_key, base_url=base_url, timeout=timeout_s, max_retries=0, http_client=http
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def send(self, system: str, user: str, options: dict[str, Any]) -> Reply:
        """The reply to one request.

        Raises:
            RequestFailedError: there is none.
        """
        messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        complete = self._client.chat.completions.with_raw_response.create
        try:
            async with asyncio.timeout(
                self._timeout_s
            ):  # the client's own limit is for each read, and bodies may trickle
                raw = await complete(model=self._model, messages=messages, **options)
            return _parsed(raw.http_response.content)
        except (TimeoutError, openai.APITimeoutError) as error:
            reason = f"no answer within {self._timeout_s:g} s"
            raise RequestFailedError("timeout", reason, passing=True, paid=True) from error
        except openai.APIStatusError as error:
            raise self._status_failure(error) from error
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError) as error:
            raise _broken(error) from error

    async def _cap(self, response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _TooLargeError("a compressed body, which was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Capped(response.stream, self._most)

    def _status_failure(self, error: openai.APIStatusError) -> RequestFailedError:
        status = error.status_code
        said = one_line(_message(error).replace(self._key, "***"))
        reason = f"the server answered {status}: {said}"
        if status == 429 and error.code == "insufficient_quota":
            return RequestFailedError("refused", reason, status=402)
        if status in _NOT_PAID or status >= 500:
            wait_s = retry_after(error.response.headers.get("retry-after", ""))
            return RequestFailedError("server", reason, passing=True, status=status, wait_s=wait_s)
        return RequestFailedError("refused", reason, status=status)


def _broken(error: Exception) -> RequestFailedError:
    """A request that ended without a whole response."""
    cause: BaseException = error.__cause__ or error
    if isinstance(cause, _TooLargeError):
        return RequestFailedError("server", f"the server sent {cause}", paid=True)
    unsent = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol)
    reason = f"no whole response: {one_line(str(cause)) or type(cause).__name__}"
    return RequestFailedError("server", reason, passing=True, paid=not unsent)


def _message(error: openai.APIStatusError) -> str:
    """What the server says, whatever the shape of its error."""
    body = error.body
    if isinstance(body, dict):
        for key in ("message", "detail", "error"):
            if body.get(key):
                return body[key] if isinstance(body[key], str) else json.dumps(body[key])
    return str(body) if body else error.message


def _parsed(body: bytes) -> Reply:
    """The reply in a response body.

    Raises:
        RequestFailedError: it is no chat completion. Such a body may come from something in between, so another try may help.
    """
    try:
        completion = json.loads(body)
        choices = completion["choices"]
        message = choices[0]["message"] if choices else {}
        usage = completion.get("usage") or {}
        return Reply(
            text=_text(message.get("content")),
            finish=_text(choices[0].get("finish_reason") if choices else None),
            refusal=_text(message.get("refusal")),
            input_tokens=_count(usage.get("prompt_tokens")),
            output_tokens=_count(usage.get("completion_tokens")),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        start = one_line(body[:400].decode("utf-8", "replace"), 80)
        raise RequestFailedError(
            "server", f"expected a chat completion, got a body that starts with {start!r}", passing=True, paid=True
        ) from error


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value.encode("utf-8", "replace").decode()


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else None


def retry_after(header: str, now_s: float | None = None) -> float | None:
    """Seconds to wait that a ``Retry-After`` header asks for: a number or a date. None where it asks nothing readable."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - (time.time() if now_s is None else now_s)
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
