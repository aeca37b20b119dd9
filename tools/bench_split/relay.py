"""A wire with a delay: what comes in at one end goes out at the other so much later, in order.

Each piece has a time of its own at which it is due, so delays do not add up, and many pieces may be
under way at once, as on a real link.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
from collections import deque
from statistics import median


def precise_loop() -> asyncio.AbstractEventLoop:
    """One that waits with select, to the microsecond: epoll knows whole milliseconds only."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class Wire:
    """:ivar delay_s: one way; may be changed at any time."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._pairs: set[_End] = set()
        self.port = 0

    async def open(self, target_port: int) -> None:
        """Listen on a loopback port of our own, before `target_port` there."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Front(self, target_port), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for end in tuple(self._pairs):
            end.drop()


class _End(asyncio.Protocol):
    """One connection of a pair: what it hears is written to the other."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport = transport
        self._wire._pairs.add(self)

    def data_received(self, data: bytes) -> None:
        self._under_way.append((self._loop.time() + self._wire.delay_s, data))
        self._pass_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._wire._pairs.discard(self)
        self._pass_on()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def joined(self) -> None:
        """The other end is there."""
        self._pass_on()

    def _pass_on(self) -> None:
        out = self.other.transport if self.other is not None else None
        if out is None:
            return
        now_s = self._loop.time()
        while self._under_way and self._under_way[0][0] <= now_s:
            out.write(self._under_way.popleft()[1])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._under_way:
            self._timer = self._loop.call_at(self._under_way[0][0], self._pass_on)
        elif self._ended:
            out.close()


class _Front(_End):
    def __init__(self, wire: Wire, target_port: int) -> None:
        super().__init__(wire)
        self._target_port = target_port
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        back = _End(self._wire)
        try:
            await self._loop.create_connection(lambda: back, "127.0.0.1", self._target_port)
        except OSError:
            self.drop()
            return
        self.other, back.other = back, self
        self.joined()


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def round_trip_s(wire: Wire, count: int = 40) -> float:
    """Median of small pings through a wire of the same delay: what the mesh's probes would say."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Echo, "127.0.0.1", 0)
    probe = Wire()
    probe.delay_s = wire.delay_s
    await probe.open(server.sockets[0].getsockname()[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", probe.port)
    took = []
    try:
        for _ in range(count):
            began = time.perf_counter()
            writer.write(b"ping")
            async with asyncio.timeout(5):
                await reader.readexactly(4)
            took.append(time.perf_counter() - began)
    finally:
        writer.close()
        probe.close()
        server.close()
    return median(took)
