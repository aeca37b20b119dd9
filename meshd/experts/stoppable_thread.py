"""Blocking work in a thread of its own that ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")

# Within what systemd gives meshd to stop.
END_S = 10.0


class StoppableThread:
    """One thread: not the loop's own, since a disk that hangs would take them all by and by."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[Callable[[], bool]], _T]) -> _T:
        """What `work` returns, which is given a call that says whether it is to end.

        Cancelling waits until it did, so that it writes nothing afterwards; not for ever, though.
        """
        stop = threading.Event()
        running = asyncio.get_running_loop().run_in_executor(self._pool, work, stop.is_set)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({running}, timeout=END_S)
            if running.done() and not running.cancelled():
                running.exception()  # it was asked for, and nobody wants to know
            raise

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
