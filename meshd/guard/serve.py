"""One guard's process: its sockets, the status on a Unix socket, and a quick end."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from aiohttp import web

from meshd.errors import UserError
from meshd.gateway.listen import Address, open_sockets
from meshd.guard.metrics import GuardMetrics
from meshd.guard.status import GuardStatus
from meshd.notify import Notifier

_BACKLOG = 128

_log = structlog.get_logger("meshd.guard")


class Guard(Protocol):
    def status(self) -> GuardStatus: ...

    async def run(self) -> None: ...


def listening(address: Address) -> socket.socket:
    """A non-blocking socket that listens. :raises UserError: the address cannot be had."""
    (listener,) = open_sockets([address], dual=True)
    listener.setblocking(False)
    listener.listen(_BACKLOG)
    return listener


async def serve(guard: Guard, metrics: GuardMetrics, status: Path) -> None:
    """Until SIGTERM or SIGINT, and then at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = await _status_server(guard, metrics, status)
    running = asyncio.create_task(guard.run())
    stopping = asyncio.create_task(stop.wait())
    notifier = Notifier()
    notifier.ready()
    feeding = asyncio.create_task(_feed_watchdog(notifier))
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        for task in (running, stopping, feeding):
            task.cancel()
        await asyncio.gather(running, stopping, feeding, return_exceptions=True)
        await runner.cleanup()
        await asyncio.to_thread(_remove, status)
        notifier.close()


async def _status_server(guard: Guard, metrics: GuardMetrics, path: Path) -> web.AppRunner:
    async def tell(_: web.Request) -> web.Response:
        return web.Response(
            body=msgspec.json.encode(guard.status()), content_type="application/json"
        )

    async def count(request: web.Request) -> web.Response:
        body, kind = metrics.page(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})

    app = web.Application()
    app.add_routes([web.get("/status", tell), web.get("/metrics", count)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await asyncio.to_thread(_remove, path)
        await web.UnixSite(runner, str(path)).start()
    except OSError as error:
        await runner.cleanup()
        raise UserError(f"{path}: {error.strerror or error}") from error
    return runner


async def _feed_watchdog(notifier: Notifier) -> None:
    interval_s = notifier.watchdog_interval_s
    while interval_s:
        notifier.watchdog()
        await asyncio.sleep(interval_s / 3)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
