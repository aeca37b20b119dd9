"""Keeps long work out of the way of requests: it stands still while some run, for a while."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable

# A node that always has requests would never get its shard: it works a quarter of the time then.
# What stands still looks hung to who watches its progress, so no stop is long.
HOLD_MOST_S = 60.0
THEN_S = 20.0
# So long a quiet moment is waited for before work begins all the same.
PATIENCE_S = 300.0


class Hold:
    """:param quiet: whether no engine loads or has a request; asked in the event loop.

    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        quiet: Callable[[], bool],
        clock: Callable[[], float],
        *,
        most_s: float = HOLD_MOST_S,
        then_s: float = THEN_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._quiet = quiet
        self._clock = clock
        self._most_s, self._then_s, self._patience_s = most_s, then_s, patience_s
        self._held_s: float | None = None
        self._freed_s = -then_s
        self._waits_s: float | None = None
        self._free = threading.Event()
        self._free.set()
        self._child: asyncio.subprocess.Process | None = None

    @property
    def held(self) -> bool:
        return not self._free.is_set()

    def may_begin(self) -> bool:
        """Whether something new may begin. To be asked while something is to do."""
        now_s = self._clock()
        if self._waits_s is None:
            self._waits_s = now_s
        if not self._quiet() and now_s - self._waits_s < self._patience_s:
            return False
        self._waits_s = None
        self._freed_s = now_s
        return True

    def look(self) -> None:
        """To be called again and again while something is under way, in the event loop."""
        now_s = self._clock()
        if self._quiet():
            self._release()
        elif self._held_s is not None:
            if now_s - self._held_s >= self._most_s:
                self._release()
                self._freed_s = now_s
        elif now_s - self._freed_s >= self._then_s:
            self._held_s = now_s
            self._free.clear()
            self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """Nothing is under way any more, or it is to end: what stands still could not."""
        self._release()
        self._child = None
        self._freed_s = -self._then_s

    def started(self, child: asyncio.subprocess.Process) -> None:
        """A child does the work from now on."""
        self._child = child
        if self.held:
            self._signal(signal.SIGSTOP)

    def wait(self, stopped: Callable[[], bool]) -> None:
        """In a thread: until it may go on, or `stopped`."""
        while not self._free.wait(0.2) and not stopped():
            pass

    def _release(self) -> None:
        self._held_s = None
        if self.held:
            self._free.set()
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        child = self._child
        # One that was waited for is not ours any more, and its number may be another's.
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)
