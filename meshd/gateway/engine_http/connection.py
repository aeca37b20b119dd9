"""One connection to an engine: sends a request, then hands out its answer as it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from multidict import CIMultiDict, CIMultiDictProxy

from meshd.gateway.engine_http.answer import Answer, AnswerBroken, is_silent

MAX_HEAD_BYTES = 64 * 1024
HELD_BYTES = 64 * 1024
"""When so much waits for the reader, the other end has to wait too."""

# In one go with the head; more goes out piece by piece, so that neither copies of it pile up in
# the transport nor its encryption keeps the event loop from others.
_SMALL_BODY_BYTES = 64 * 1024
_PIECE_BYTES = 128 * 1024


# All connections read into it, one after the other: it is parsed before the event loop goes on. By
# itself the event loop reads up to 256 KiB at once, which then waits for a client that is slow.
_read_buffer = memoryview(bytearray(64 * 1024))


class Connection(asyncio.BufferedProtocol):
    """Not for two requests at once, nor for two readers."""

    def __init__(self, released: Callable[[Connection], None]) -> None:
        """:param released: gets it when an answer was read to its end and another may follow."""
        self._released = released
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._error: str | None = None
        self._silent = False
        self._idle = True
        self._write_paused = False
        self._read_paused = False
        self._new_answer()

    def _new_answer(self) -> None:
        self._fields: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._status = 0
        self._headers: CIMultiDictProxy[str] | None = None
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._begun = False
        self._interim = False
        self._until_end_of_file = False
        self._complete = False
        self._keep = False
        self._sent = False

    @property
    def usable(self) -> bool:
        """Whether a request could be sent now, as far as can be told from here."""
        transport = self._transport
        return (
            self._idle
            and self._error is None
            and transport is not None
            and not transport.is_closing()
        )

    async def ask(self, head: bytes, body: bytes = b"") -> Answer:
        """Send a request and wait for its answer's head; the caller sets the deadline.

        The connection is cut when this is cancelled or fails.

        :raises AnswerBroken: no answer came.
        """
        assert self._idle
        self._idle = False
        self._new_answer()
        try:
            await self._send(head, body)
            while self._headers is None:
                if self._error is not None:
                    raise self._broken(self._error)
                await self._wait()
        except BaseException:
            self.cut()
            raise
        return Answer(self._status, self._headers, self)

    async def piece(self) -> bytes:
        """As `Answer.piece`."""
        while True:
            if self._pieces:
                pieces, self._pieces = self._pieces, []
                self._held_bytes = 0
                if self._read_paused:
                    self._read_paused = False
                    if self._transport is not None and not self._transport.is_closing():
                        self._transport.resume_reading()
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._complete:
                return b""
            if self._error is not None:
                raise self._broken(self._error)
            await self._wait()

    def rest(self) -> bytes | None:
        """As `Answer.rest`."""
        if not self._complete or self._read_paused:
            return None
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def leave(self) -> None:
        """As `Answer.close`."""
        if self._complete and self._keep and self._sent and not self._pieces:
            self._idle = True
            if self.usable:
                self._released(self)
                return
        self.cut()

    def cut(self) -> None:
        """End it now."""
        if self._error is None:
            self._error = "cut"
        if self._transport is not None:
            self._transport.abort()

    async def _send(self, head: bytes, body: bytes) -> None:
        transport = self._transport
        if transport is None or self._error is not None:
            raise self._broken(self._error or "not connected")
        if len(body) <= _SMALL_BODY_BYTES:
            transport.write(head + body)
            self._sent = True
            return
        transport.write(head)
        with memoryview(body) as view:
            for start in range(0, len(body), _PIECE_BYTES):
                # An answer before the body's end is a refusal: the rest is not wanted.
                while self._write_paused and self._error is None and self._headers is None:
                    await self._wait()
                if self._error is not None or self._headers is not None:
                    return
                transport.write(view[start : start + _PIECE_BYTES])
        self._sent = True

    async def _wait(self) -> None:
        assert self._waiter is None
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _broken(self, why: str) -> AnswerBroken:
        return AnswerBroken(why, silent=self._silent, begun=self._begun)

    def _fail(self, why: str, cause: BaseException | None = None) -> None:
        if self._error is None:
            self._error, self._silent = why, is_silent(cause)
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclasses of it.
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(_read_buffer[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        if self._idle or self._complete:
            self._keep = False
            self._fail("data that nobody asked for")
            return
        self._begun = True
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:  # what our callbacks raise, too
            if not self._complete:
                self._fail(f"not HTTP: {error}")
            self._keep = False
        if self._headers is None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail("its head has no end")
        elif self._held_bytes > HELD_BYTES and not self._read_paused and not self._complete:
            assert self._transport is not None
            self._read_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        if self._until_end_of_file and self._error is None:
            self._complete = True

    def connection_lost(self, error: Exception | None) -> None:
        self._keep = False
        self._transport = None
        self._fail(str(error) or repr(error) if error else "hung up", error)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake()

    # What the parser calls. An answer of 1xx precedes the real one.

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep = False
            raise ValueError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("its head is too large")
        if self._headers is None:  # else a trailer, which nobody wants
            self._fields.append(
                (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
            )

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._interim = True
            self._fields.clear()
            return
        self._head_bytes = 0
        self._status = status
        self._keep = self._parser.should_keep_alive()
        self._headers = headers = CIMultiDictProxy(CIMultiDict(self._fields))
        self._until_end_of_file = not (
            "Content-Length" in headers
            or headers.get("Transfer-Encoding", "").lower().endswith("chunked")
        )

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)
        self._held_bytes += len(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self._complete = True
