"""The answer to a streaming client: prepared with its first byte, and never ended silently."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import structlog
from aiohttp import web
from multidict import CIMultiDict

from meshd.gateway.client_answer import ClientAnswer
from meshd.gateway.openai_error import ApiError
from meshd.gateway.protocols import Protocol

_log = structlog.get_logger("meshd.gateway")

_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would keep the comments of a client that waits
}
# A comment's text may come from other nodes.
_LONGEST_COMMENT = 200


class ClientStream:
    """Takes whole events only, so that an error event can follow at any time.

    :ivar headers: of the answer, as far as they are known before it begins.
    :ivar begun: a data event was sent: nobody may start over from here on.
    :ivar blocked: the client takes nothing just now; its buffers are full.
    """

    __slots__ = (
        "_last_words_s", "_protocol", "_request", "_request_id", "_response", "begun", "blocked",
        "headers",
    )  # fmt: skip

    def __init__(
        self, request: web.Request, protocol: Protocol, request_id: str, last_words_s: float
    ) -> None:
        """:param last_words_s: seconds that a client has to take the stream's end."""
        self._request = request
        self._protocol = protocol
        self._request_id = request_id
        self._last_words_s = last_words_s
        self._response: ClientAnswer | None = None
        self.headers: CIMultiDict[str] = CIMultiDict(_HEADERS)
        self.begun = False
        self.blocked = False

    @property
    def prepared(self) -> bool:
        """Its head was sent: an error can only be an event now."""
        return self._response is not None

    async def comment(self, text: str) -> None:
        """Tell a person who looks, and keep everything between here and there from timing out.

        It holds up nothing for longer than a stream's end does.
        """
        line = " ".join(text.removeprefix(":").split())[:_LONGEST_COMMENT]
        with suppress(TimeoutError):  # who does not take it now finds it when it reads on
            async with asyncio.timeout(self._last_words_s):
                await self._write(f": {line}\n\n".encode())

    async def events(self, ready: bytes) -> None:
        """:param ready: whole events, or a piece of one that is too long to be held."""
        if not self.begun:
            # From here on, whatever becomes of the wait until the client has taken it.
            self.begun = not only_comments(ready)
        await self._write(ready)

    async def fail(self, error: ApiError, *, whole: bool = True) -> web.StreamResponse:
        """End it with an error. :param whole: it stands at an event's end."""
        if error.retry_after_s is not None:
            # There is no header any more that could say so.
            error = replace(error, extra={**error.extra, "retry_after_s": error.retry_after_s})
        # After a piece of an overlong event, its end comes first.
        end = b"" if whole else b"\n\n"
        return await self._finish(end + self._protocol.error_event(error, self._request_id))

    async def end(self, rest: bytes = b"") -> web.StreamResponse:
        """End it as the engine did. :param rest: what came after the last whole event."""
        return await self._finish(rest)

    def abort(self) -> web.StreamResponse:
        """Cut it: the client takes nothing, no error would reach it either."""
        if self._request.transport is not None:
            self._request.transport.abort()
        return self._response or web.StreamResponse()

    async def _write(self, data: bytes) -> None:
        response = self._response
        self.blocked = True
        if response is None:
            response = self._response = ClientAnswer(self.headers)
            await response.prepare(self._request)
        await response.write(data)
        self.blocked = False

    async def _finish(self, data: bytes) -> web.StreamResponse:
        try:
            async with asyncio.timeout(self._last_words_s):
                if data or self._response is None:
                    await self._write(data)
                assert self._response is not None
                await self._response.write_eof()
        except TimeoutError:
            _log.warning("client does not take the end of its stream")
        return self._response or web.StreamResponse()


def only_comments(events: bytes) -> bool:
    """Whether there is nothing in these whole events that a client acts on."""
    return events.startswith(b":") and all(
        not line or line.startswith(b":") for line in events.splitlines()
    )
