"""Work on a file of logits, in a thread: there is a gigabyte to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from meshd.experts.stoppable_thread import StoppableThread

_T = TypeVar("_T")


async def in_logits_thread(work: Callable[[Callable[[], bool]], _T]) -> _T:
    """:param work: is given what says whether it is to stop. Cancelling stops it."""
    thread = StoppableThread("logits")
    try:
        return await thread.run(work)
    finally:
        thread.close()
