"""Noticing that the event loop hangs: the process lives on, but nobody is at home."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

# Far above the pauses of a busy machine, far below what a caller would wait for.
HUNG_AFTER_S = 5.0
_BEAT_S = 1.0


class LoopWatch:
    """A thread that calls `hung` when the loop has not turned for `after_s`, and `back` when it
    turns again; both in that thread.
    """

    def __init__(
        self, hung: Callable[[], None], back: Callable[[], None], after_s: float = HUNG_AFTER_S
    ) -> None:
        self._hung, self._back, self._after_s = hung, back, after_s
        self._stop = threading.Event()
        self._beaten = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="mesh-watch", daemon=True)

    def start(self) -> None:
        """Call it in the loop that is watched."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(_BEAT_S, self._beat)

    def _watch(self) -> None:
        gone = False
        seen = time.monotonic()
        while not self._stop.wait(_BEAT_S):
            now = time.monotonic()
            if now - seen > self._after_s / 2:
                # We did not run either: the whole process was stopped. Give the loop its time.
                self._beaten = now
            seen = now
            hangs = now - self._beaten > self._after_s
            if hangs != gone:
                gone = hangs
                # The session may close under us; then its tokens are gone anyway.
                with contextlib.suppress(Exception):
                    (self._hung if hangs else self._back)()
