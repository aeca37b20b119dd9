"""Work that goes on as long as the gateway does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

_PAUSE_S = 1.0

_log = structlog.get_logger("meshd.gateway")


async def lasting(what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do it until it ends by itself or is cancelled, and anew after it failed.

    What follows a file must not end with the first thing that nobody thought of, least of all in
    silence: everything else goes on, and nobody sees that keys and tables are those of yesterday.

    :param what: for the log.
    """
    while True:
        try:
            return await work()
        except Exception:
            _log.exception("failed, and begins anew", what=what)
            await asyncio.sleep(_PAUSE_S)
