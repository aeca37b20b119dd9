"""Waiting for work no longer than until somebody asks us to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

_T = TypeVar("_T")


async def until_stopped(
    work: Coroutine[None, None, _T], stopped: asyncio.Event, *, deadline_s: float
) -> _T | None:
    """The work's result; None when we were stopped first. What is not done is cancelled.

    :raises TimeoutError: neither happened in time.
    """
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stopped.wait())
    try:
        done, _ = await asyncio.wait(
            {working, stopping}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            raise TimeoutError
        return working.result() if working in done else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.wait({working, stopping})
