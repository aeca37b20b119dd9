"""One keep-alive connection that sends one request after the other, as cheaply as Python can."""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

_CONNECT_S = 10.0


class LaneError(Exception):
    """The connection broke, or the answer is none."""


class Lane(asyncio.Protocol):
    """Subclasses say what a body and an end mean; `answered` and `broke` are called once a request.

    Opened again by itself where the server closes it between two requests, even where the next one
    was on its way already, as clients do (RFC 9112, 9.3.1).
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._asked = False
        self._request = b""
        # Whether it waits for the connection to be gone.
        self._waits = False

    async def open(self) -> None:
        """:raises LaneError: nobody answers there."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await loop.create_connection(lambda: self, "127.0.0.1", self.port)
        except (OSError, TimeoutError) as error:
            raise LaneError(f"port {self.port}: {error}") from None

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def status(self) -> int:
        return self._parser.get_status_code()

    def ask(self, request: bytes) -> None:
        """Send it; where the connection is gone meanwhile, on a new one."""
        self._request = request
        if self._transport is None:
            self._opening = asyncio.ensure_future(self._ask_anew())
        elif self._transport.is_closing():
            self._waits = True
        else:
            self._asked, self._heard = True, False
            self._transport.write(request)

    async def _ask_anew(self) -> None:
        try:
            await self.open()
        except LaneError as error:
            if not self.closed:
                self.broke(str(error))
            return
        if self.closed:
            self.close()
        else:
            self.ask(self._request)

    def body(self, data: bytes) -> None:
        """A part of the answer."""

    def answered(self) -> None:
        """The answer is complete."""

    def broke(self, why: str) -> None:
        """There will be no answer, or no more of it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of asyncio's class.
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        self._ended = self._used = self._heard = False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self.closed:
            return
        if self._waits or (self._asked and self._used and not self._heard):
            self._waits = self._asked = False
            self.ask(self._request)
        elif self._asked:
            self._asked = False
            self.broke(f"connection lost: {error}")

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.broke(f"not HTTP: {error}")
            self.close()
            return
        if self._ended:
            # Out here, where the parser may be replaced and the next request sent.
            self._ended = self._asked = False
            self._used = True
            if not self._keep and self._transport is not None:
                self._transport.close()
            self.answered()

    def on_body(self, data: bytes) -> None:
        self.body(data)

    def on_message_complete(self) -> None:
        self._ended = True
        # Asked later, the parser has forgotten.
        self._keep = self._parser.should_keep_alive()
