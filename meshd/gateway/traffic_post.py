"""Brings traffic reports to the brain: when something changed, once a second at most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import aiohttp
import structlog

from meshd.gateway.traffic import PATH, TrafficReport, encode

_log = structlog.get_logger("meshd.gateway")

_EVERY_S = 1.0
# A brain that is away loses nothing: the counters go on.
_LAST_S = 5.0
_DEADLINE_S = 2.0


async def post_traffic(
    socket: Path, report: Callable[[], TrafficReport | None], *, every_s: float = _EVERY_S
) -> None:
    """Post to the brain's control socket until cancelled.

    :param report: what there is to say; None for nothing yet.
    """
    said: tuple[TrafficReport, tuple[int, int]] | None = None
    delay_s = every_s
    while True:
        await asyncio.sleep(delay_s)
        now, brain = report(), _identity(socket)
        if now is None or (now, brain) == said or not (said or now.models or now.unreachable):
            continue
        if await _post(socket, encode(now)):
            said, delay_s = (now, brain), every_s
        else:
            delay_s = min(2 * delay_s, max(every_s, _LAST_S))


def _identity(socket: Path) -> tuple[int, int]:
    """Another one when another brain listens there, which has heard nothing yet."""
    try:
        about = socket.stat()
    except OSError:
        return 0, 0
    return about.st_ino, about.st_mtime_ns


async def _post(socket: Path, data: bytes) -> bool:
    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(socket), force_close=True), timeout=timeout
            ) as http,
            http.post(
                f"http://meshd{PATH}", data=data, headers={"Content-Type": "application/json"}
            ) as answer,
        ):
            if answer.status >= 300:
                _log.debug("the brain did not take the traffic", status=answer.status)
            return answer.status < 300
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
