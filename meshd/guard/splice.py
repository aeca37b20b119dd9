"""Two sockets joined: what one says goes to the other, read by a conversation on its way.

On the event loop, with non-blocking sockets: `ssl.SSLSocket` writes each record straight to the
socket, where asyncio's and uvloop's TLS gather it in memory first. One buffer a direction; a side
that does not take what it is sent stops the other from being read.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from socket import IPPROTO_TCP, SO_RCVLOWAT, SOL_SOCKET, TCP_CORK, socket
from time import monotonic
from typing import Protocol

from meshd.guard.conversation import BrokenTalkError

# Of one direction, at most.
_BUFFER_BYTES = 256 * 1024
# The most that one read of TLS brings (RFC 8446, 5.1): with room for it, none stays half read in
# OpenSSL, where no event would tell of it.
_RECORD = 16 * 1024
# Passed on when it is more: in the midst of a long payload, and else.
_FULL = _BUFFER_BYTES - _RECORD
_ENOUGH = 48 * 1024
# Reads in one turn of the loop, so that others get theirs while gigabytes pass.
_TURNS = 16

_AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Meter(Protocol):
    def __call__(self, data: memoryview, now_s: float) -> int:
        """How many bytes there have to be next before it is worth waking up.

        :raises BrokenTalkError: nothing of it may pass.
        """


class Flow:
    """One direction.

    :ivar moved_bytes: taken by the target's socket.
    :ivar heard_s: when the source last said something.
    :ivar blocked: the target takes no more for now.
    """

    def __init__(
        self,
        source: socket,
        target: socket,
        meter: Meter,
        may_wait: Callable[[], bool],
        on_end: Callable[[socket | None, str], None],
        on_taken: Callable[[float], None],
    ) -> None:
        """:param may_wait: whether nobody waits for what was metered since this was last asked.

        :param on_end: hears whose end it was (None: the meter's), and why, "" for a plain one.
        :param on_taken: hears that bytes moved which the target had not taken before.
        """
        self.moved_bytes = 0
        self.heard_s = monotonic()
        self.blocked = False
        self._loop = asyncio.get_running_loop()
        self._source, self._target = source, target
        self._in, self._out = source.fileno(), target.fileno()
        self._meter, self._may_wait = meter, may_wait
        self._encrypted = isinstance(source, ssl.SSLSocket)
        self._chunk = _RECORD if self._encrypted else _BUFFER_BYTES
        self._low_water = 1
        self._seals = isinstance(target, ssl.SSLSocket)
        self._on_end, self._on_taken = on_end, on_taken
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._at = self._filled = 0
        self._closed = False

    def start(self, first: bytes = b"") -> None:
        """:param first: what was read already; at most 256 KiB."""
        self._loop.add_reader(self._in, self._readable)
        if first:
            self._buffer[: len(first)] = first
            self._take(len(first))
        if self._encrypted and not self._closed and not self.blocked:
            # What came in one record with what was read already: no event tells of it.
            self._readable()

    def stop(self) -> None:
        """The sockets are the caller's to close, after this."""
        if self._closed:
            return
        self._closed = True
        if self.blocked:
            self._loop.remove_writer(self._out)
        else:
            self._loop.remove_reader(self._in)

    def _readable(self) -> None:
        for _ in range(_TURNS):
            if not self._read() or self.blocked or self._closed:
                return
        # What is left lies in the kernel, and the loop comes again for it.

    def _read(self) -> bool:
        """Until there is enough to send; whether there may be more to read."""
        buffer, before = self._buffer, self._filled
        filled, more = before, True
        receive, chunk = self._source.recv_into, self._chunk
        try:
            while filled <= _FULL:
                count = receive(buffer[filled:])
                filled += count
                if count < chunk:
                    # No more, or it brings an event of its own; to ask would cost an exception.
                    more = False
                    break
        except _AGAIN:
            if filled == before:
                return False
            more = False
        except OSError as error:
            self._end(self._source, _words(error))
            return False
        if filled == before:
            self._end(self._source, "")
            return False
        return self._take(filled) and more

    def _take(self, filled: int) -> bool:
        self.heard_s = now_s = monotonic()
        try:
            wanted = self._meter(self._buffer[self._filled : filled], now_s)
        except BrokenTalkError as error:
            self._end(None, str(error))
            return False
        self._filled = filled
        if wanted != self._low_water and not self._encrypted:
            self._set_low_water(wanted)
        if filled > (_FULL if wanted > _BUFFER_BYTES else _ENOUGH) or not self._may_wait():
            self._write()
        return True

    def _set_low_water(self, count: int) -> None:
        """A request comes in three pieces; each would wake this process up."""
        self._low_water = count
        with suppress(OSError):
            self._source.setsockopt(SOL_SOCKET, SO_RCVLOWAT, min(count, _ENOUGH))

    def _write(self) -> None:
        buffer, at, filled = self._buffer, self._at, self._filled
        send = self._target.send
        corked = self._seals and filled - at > _RECORD
        try:
            if corked:
                # One segment, and one waking of the other end, for many records.
                self._target.setsockopt(IPPROTO_TCP, TCP_CORK, 1)
            while at < filled:
                at += send(buffer[at:filled])
        except _AGAIN:
            pass
        except OSError as error:
            self._end(self._target, _words(error))
            return
        finally:
            if corked:
                with suppress(OSError):
                    self._target.setsockopt(IPPROTO_TCP, TCP_CORK, 0)
        self.moved_bytes += at - self._at
        if at < filled:
            self._at = at
            if not self.blocked:
                self.blocked = True
                self._loop.remove_reader(self._in)
                self._loop.add_writer(self._out, self._writable)
            return
        self._at = self._filled = 0
        if self.blocked:
            self.blocked = False
            self._loop.remove_writer(self._out)
            self._loop.add_reader(self._in, self._readable)

    def _writable(self) -> None:
        before = self._at
        self._write()
        if not self._closed and (self._at > before or not self.blocked):
            self._on_taken(monotonic())

    def _end(self, whose: socket | None, why: str) -> None:
        if not self._closed:
            self.stop()
            self._on_end(whose, why)


def _words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
