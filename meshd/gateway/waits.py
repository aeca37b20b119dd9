"""Waits that can be ended from outside: because the gateway stops, or the target has moved.

One timer serves all of them: it is set to the earliest deadline and looks again then. Deadlines
move on with every token, and a timer of its own that has to follow costs more than the token.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import TracebackType

Given = Callable[[], bool]
"""Whether what is waited for will not come any more."""


class Wait:
    """Use it as an asynchronous context.

    :ivar given_up: it ended because nothing was to be expected any more.
    :ivar moved_s: by the event loop's clock, when something of what is waited for came last.
    :ivar until_s: by the same clock, when it ends.
    """

    __slots__ = ("_hopeless", "_timeout", "_waits", "given_up", "moved_s", "until_s")

    def __init__(self, waits: Waits, now_s: float, until_s: float, hopeless: Given | None) -> None:
        self.given_up = False
        self.moved_s = now_s
        self.until_s = until_s
        self._hopeless = hopeless
        self._waits = waits
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Wait:
        await self._timeout.__aenter__()
        self._waits.enter(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waits.leave(self)
        # It may know this wait: a circle, which only the collector would find.
        self._hopeless = None
        await self._timeout.__aexit__(kind, error, traceback)

    def reconsider(self) -> None:
        if self._hopeless is not None and self._hopeless():
            self.given_up = True
            self.end()

    def end(self) -> None:
        """Now. Harmless when called again."""
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())


class Waits:
    """:ivar stopping: nothing is waited for any more."""

    def __init__(self) -> None:
        self.stopping = False
        self._waits: set[Wait] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._look_s = math.inf

    def stop(self) -> None:
        """End all waits now, and each later one at once."""
        self.stopping = True
        self._look_at(math.inf)
        for wait in self._waits:
            wait.end()

    def reconsider(self) -> None:
        """Something changed: end the waits that have become hopeless."""
        for wait in [*self._waits]:
            wait.reconsider()

    def extend(self, wait: Wait, seconds: float) -> None:
        """Something came: let it last so long from now."""
        if not self.stopping and not wait.given_up:
            wait.moved_s = now_s = asyncio.get_running_loop().time()
            wait.until_s = until_s = now_s + seconds
            if until_s < self._look_s:
                self._look_at(until_s)

    def within(self, seconds: float, hopeless: Given | None = None) -> Wait:
        """:raises TimeoutError: in its context: it took longer, the gateway stops, or it was given
        up.
        """
        now_s = asyncio.get_running_loop().time()
        return Wait(self, now_s, now_s + seconds, hopeless)

    def enter(self, wait: Wait) -> None:
        """It begins."""
        self._waits.add(wait)
        if self.stopping:
            wait.end()
        elif wait.until_s < self._look_s:
            self._look_at(wait.until_s)

    def leave(self, wait: Wait) -> None:
        """It is over."""
        self._waits.discard(wait)

    def _look_at(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._look_s = when_s
        if when_s < math.inf:
            self._timer = asyncio.get_running_loop().call_at(when_s, self._look)

    def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        next_s = math.inf
        for wait in self._waits:
            # The loop's clock is coarser than its timers.
            if wait.until_s <= max(now_s, self._look_s):
                wait.end()
            else:
                next_s = min(next_s, wait.until_s)
        self._timer = None
        self._look_at(next_s)
