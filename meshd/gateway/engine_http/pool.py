"""Idle connections to one place, kept for the next request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from meshd.gateway.engine_http.connection import Connection
from meshd.gateway.engine_http.dial import Make

MAX_IDLE = 256


class Pool:
    """The one used last is used first, so that those which a burst left behind grow old."""

    def __init__(
        self, dial: Callable[[Make], Awaitable[Connection]], connect_s: float, keep_s: float
    ) -> None:
        """:param dial: makes a connection. :param connect_s: how long that may take.

        :param keep_s: how long an idle one is kept; 0 for not at all.
        """
        self._dial = dial
        self._connect_s = connect_s
        self._keep_s = keep_s
        self._idle: deque[tuple[float, Connection]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def idle(self) -> int:
        """How many are kept now."""
        return len(self._idle)

    def kept(self) -> Connection | None:
        """One that was used before; the other end may just be closing it."""
        while self._idle:
            _, connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.cut()
        return None

    async def fresh(self) -> Connection:
        """A new one.

        :raises TimeoutError: without `errno`: it took too long.
        :raises OSError: nobody listens there, or it is not who it should be.
        :raises ValueError: the place can be no place.
        """
        async with asyncio.timeout(self._connect_s):
            return await self._dial(self._make)

    def close(self) -> None:
        """Close all that are idle; those in use are closed when they are given back."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._idle:
            self._idle.pop()[1].cut()

    def _make(self) -> Connection:
        return Connection(self._given_back)

    def _given_back(self, connection: Connection) -> None:
        if self._closed or not self._keep_s or len(self._idle) >= MAX_IDLE:
            connection.cut()
            return
        loop = asyncio.get_running_loop()
        self._idle.append((loop.time() + self._keep_s, connection))
        if self._sweep is None:
            self._sweep = loop.call_later(self._keep_s, self._drop_old)

    def _drop_old(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = None
        # One that got no younger than another lies left of it.
        while self._idle and self._idle[0][0] <= loop.time():
            self._idle.popleft()[1].cut()
        if self._idle:
            self._sweep = loop.call_at(self._idle[0][0], self._drop_old)
