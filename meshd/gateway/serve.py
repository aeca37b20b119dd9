"""The gateway's process: sockets, signals, and an end that lets streams finish."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from aiohttp import web

from meshd.gateway.app import make_app
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.relay import Relay
from meshd.gateway.table_watch import TableWatch
from meshd.gateway.upstreams import Deadlines, Upstreams
from meshd.notify import Notifier

DRAIN_S = 20.0
# After the drain: time for the error events to reach their clients.
_LAST_WORDS_S = 2.0
# Clients may keep a connection for so long between two requests.
_KEEPALIVE_S = 75.0

_log = structlog.get_logger("meshd.gateway")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """:ivar drain_s: seconds that running answers get when the gateway is stopped."""

    routes: Path
    drain_s: float = DRAIN_S
    deadlines: Deadlines = field(default_factory=Deadlines)
    process_metrics: bool = True


@asynccontextmanager
async def running(
    options: GatewayOptions, sockets: list[socket.socket]
) -> AsyncIterator[web.AppRunner]:
    """A gateway that serves on these sockets, and drains when the context ends."""
    metrics = GatewayMetrics(process=options.process_metrics)
    upstreams = Upstreams(options.deadlines, metrics)
    watch = TableWatch(options.routes, metrics, upstreams.table_changed)
    relay = Relay(watch, upstreams, metrics, options.deadlines)
    await watch.refresh()
    following = asyncio.create_task(watch.run())
    runner = web.AppRunner(
        make_app(watch, upstreams, relay, metrics),
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=_KEEPALIVE_S,
        shutdown_timeout=options.drain_s + _LAST_WORDS_S,
    )
    await runner.setup()
    try:
        for listener in sockets:
            await web.SockSite(runner, listener).start()
        yield runner
    finally:
        deadline = asyncio.get_running_loop().call_later(options.drain_s, relay.stop)
        await runner.cleanup()
        deadline.cancel()
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await upstreams.close()


async def serve(options: GatewayOptions, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM or SIGINT. SIGHUP does nothing: the table is followed anyway."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _log.debug("SIGHUP: nothing to reload"))
    notifier = Notifier()
    async with running(options, sockets) as runner:
        _log.info("gateway ready", addresses=[_shown(place) for place in runner.addresses])
        notifier.ready()
        feeding = asyncio.create_task(_feed_watchdog(notifier))
        await stop.wait()
        notifier.stopping()
        _log.info("gateway stops", drain_s=options.drain_s)
    feeding.cancel()
    notifier.close()


async def _feed_watchdog(notifier: Notifier) -> None:
    """From the event loop, so that a hung one is noticed."""
    interval_s = notifier.watchdog_interval_s
    while interval_s:
        notifier.watchdog()
        await asyncio.sleep(interval_s / 3)


def _shown(place: object) -> str:
    if isinstance(place, tuple):
        host, port = str(place[0]), place[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(place)
