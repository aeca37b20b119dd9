"""Calls that block, away from the event loop and with a deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def away(call: Callable[[], T], timeout_s: float, late: Callable[[T], object]) -> T:
    """Run `call` in a thread of its own.

    :param late: what becomes of a result that nobody waits for any more; runs in that thread.

    :raises TimeoutError: it took longer; what `call` raises is raised here.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    lock = threading.Lock()
    gone = False

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        problem: BaseException | None = None
        try:
            result = call()
        except BaseException as error:
            problem = error
        with lock:
            if not gone:
                try:
                    loop.call_soon_threadsafe(deliver, result, problem)
                except RuntimeError:  # the loop has been closed meanwhile
                    pass
                else:
                    return
        if problem is None:
            late(result)  # type: ignore[arg-type]

    # No daemon: one that comes back from Rust while Python ends would abort the process.
    threading.Thread(target=work, name="mesh-call").start()
    try:
        return await asyncio.wait_for(asyncio.shield(future), timeout_s)
    except (TimeoutError, asyncio.CancelledError):
        with lock:
            gone = True
        if future.done() and not future.cancelled() and future.exception() is None:
            late(future.result())
        future.cancel()
        raise
