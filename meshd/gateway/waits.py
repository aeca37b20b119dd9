"""Waits that can be ended from outside: because the gateway stops, or the target has moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Given = Callable[[], bool]
"""Whether what is waited for will not come any more."""


class Wait:
    """:ivar given_up: it ended because nothing was to be expected any more.

    :ivar moved_s: by the event loop's clock, when something of what is waited for came last.
    """

    __slots__ = ("_hopeless", "_timeout", "given_up", "moved_s")

    def __init__(self, timeout: asyncio.Timeout, hopeless: Given | None) -> None:
        self._timeout = timeout
        self._hopeless = hopeless
        self.given_up = False
        self.moved_s = asyncio.get_running_loop().time()

    def reconsider(self) -> None:
        if self._hopeless is not None and self._hopeless():
            self.given_up = True
            self.end()

    def end(self) -> None:
        self.until(asyncio.get_running_loop().time())

    def until(self, when: float) -> None:
        """:param when: by the event loop's clock."""
        if not self._timeout.expired():
            self._timeout.reschedule(when)


class Waits:
    """:ivar stopping: nothing is waited for any more."""

    def __init__(self) -> None:
        self.stopping = False
        self._waits: set[Wait] = set()

    def stop(self) -> None:
        """End all waits now, and each later one at once."""
        self.stopping = True
        for wait in self._waits:
            wait.end()

    def reconsider(self) -> None:
        """Something changed: end the waits that have become hopeless."""
        for wait in [*self._waits]:
            wait.reconsider()

    def extend(self, wait: Wait, seconds: float) -> None:
        """Something came: let it last so long from now."""
        if not self.stopping and not wait.given_up:
            wait.moved_s = asyncio.get_running_loop().time()
            wait.until(wait.moved_s + seconds)

    @asynccontextmanager
    async def within(self, seconds: float, hopeless: Given | None = None) -> AsyncIterator[Wait]:
        """:raises TimeoutError: it took longer, the gateway stops, or it was given up."""
        async with asyncio.timeout(0 if self.stopping else seconds) as timeout:
            wait = Wait(timeout, hopeless)
            self._waits.add(wait)
            try:
                yield wait
            finally:
                self._waits.discard(wait)
