"""An answer to a client whose bytes are put together here, and go out in one piece with its head.

aiohttp's own answers take a third of the time of a short request: they keep open what is settled
here (no compression, no cookies, no ranges). Connections, limits and requests stay aiohttp's.
Format: RFC 9112, sections 4, 7.1 and 9.3.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from meshd.gateway.engine_http.message_head import head_bytes

# Larger ones are not copied to be sent together with their heads.
_SMALL_BODY_BYTES = 64 * 1024


class ClientAnswer(web.StreamResponse):
    """With status 200, to a POST. Either whole, or a stream of pieces that each leave at once."""

    def __init__(self, headers: Mapping[str, str], body: bytes | None = None) -> None:
        """:param body: all of it; None for a stream."""
        super().__init__(headers=headers)
        self._whole = body
        # Of a stream, until it goes out with the first piece.
        self._head = b""
        self._client: web.Request | None = None
        self._in_chunks = False
        self._ended = False

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request."""
        return super().keep_alive is not False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send it if it is whole; the head of a stream waits for what follows it.

        :raises ConnectionError: the client has left.
        """
        if self._client is not None:
            return
        assert isinstance(request, web.Request)
        self._client = request
        await request.app.on_response_prepare.send(request, self)
        body = self._whole
        head = self._framed(request, None if body is None else len(body))
        if body is None:
            self._head = head
            return
        if len(body) <= _SMALL_BODY_BYTES:
            self._send(head + body)
        else:
            self._send(head)
            self._send(body)
        self._whole = None
        self._ended = True
        await self._taken()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a piece of a stream, and wait while the client does not take what it was sent.

        :raises ConnectionError: the client has left.
        """
        assert self._client is not None
        head, self._head = self._head, b""
        if self._in_chunks:
            self._send(b"".join((head, b"%x\r\n" % len(data), data, b"\r\n")))
        else:
            self._send(head + data)
        await self._taken()

    async def write_eof(self, data: bytes = b"") -> None:
        """:raises ConnectionError: the client has left."""
        if self._ended:
            return
        assert self._client is not None
        if data:
            await self.write(data)
        self._ended = True
        self._send(self._head + (b"0\r\n\r\n" if self._in_chunks else b""))
        await self._taken()

    async def _taken(self) -> None:
        assert self._client is not None
        if self._client.protocol.writing_paused:
            # aiohttp has one wait for all: cancelled once, it would cancel all that come later.
            await asyncio.shield(asyncio.ensure_future(self._client.writer.drain()))

    def _framed(self, request: web.Request, size_bytes: int | None) -> bytes:
        version, headers = request.version, self.headers
        self._in_chunks = size_bytes is None and version >= HttpVersion11
        # Without chunks a stream ends with its connection.
        if not request.keep_alive or (size_bytes is None and not self._in_chunks):
            self.force_close()
        _frame(headers, size_bytes, in_chunks=self._in_chunks)
        if not self.keep_alive:
            headers["Connection"] = "close"
        elif version < HttpVersion11:
            headers["Connection"] = "keep-alive"
        return head_bytes(f"HTTP/{version[0]}.{version[1]} 200 OK", headers)

    def _send(self, data: bytes) -> None:
        transport = self._client.transport if self._client is not None else None
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        transport.write(data)


def _frame(headers: CIMultiDict[str], size_bytes: int | None, *, in_chunks: bool) -> None:
    if size_bytes is not None:
        headers["Content-Length"] = str(size_bytes)
    elif in_chunks:
        headers["Transfer-Encoding"] = "chunked"
    headers["Date"] = _date(int(time.time()))


@lru_cache(maxsize=1)
def _date(now_s: int) -> str:
    return formatdate(now_s, usegmt=True)
