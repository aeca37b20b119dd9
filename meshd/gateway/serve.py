"""The gateway's process: sockets, signals, and an end that lets streams finish."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
from aiohttp import web

from meshd.gateway.accounts_file import AccountsFile
from meshd.gateway.app import make_app
from meshd.gateway.certificate import Certificate
from meshd.gateway.client_connection import IDLE_S
from meshd.gateway.client_door import ClientDoor
from meshd.gateway.client_tls import ClientTls
from meshd.gateway.crowd import CrowdLimits
from meshd.gateway.front_door import FrontDoor
from meshd.gateway.gate import Gate, loopback
from meshd.gateway.key_watch import KeyWatch
from meshd.gateway.lasting import lasting
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.model_files import ModelFiles
from meshd.gateway.news import News
from meshd.gateway.peer_app import asking, make_peer_app
from meshd.gateway.peer_door import PeerDoor
from meshd.gateway.relay import Relay
from meshd.gateway.routes import Front, RoutingTable
from meshd.gateway.routes_feed import FeedLimits, RoutesFeed
from meshd.gateway.table_watch import TableWatch
from meshd.gateway.telemetry import Telemetry
from meshd.gateway.traffic import TrafficReport
from meshd.gateway.traffic_count import TrafficCount
from meshd.gateway.traffic_post import post_traffic
from meshd.gateway.upstreams import Deadlines, Upstreams
from meshd.host_check import machine_names
from meshd.keys.key_folder import KeyPlaces
from meshd.notify import Notifier

DRAIN_S = 20.0
# After the drain: time for the error events to reach their clients.
_LAST_WORDS_S = 2.0
# Before there is a routing table.
_FRONT = Front()
# Certificates are made anew months before they run out.
_CERTIFICATE_LOOK_S = 5.0

_log = structlog.get_logger("meshd.gateway")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """:ivar drain_s: seconds that running answers get when the gateway is stopped.

    :ivar control: the brain's control socket, which hears of the traffic; None for nobody.
    :ivar keys: where API keys are written; None for no keys.
    :ivar accounts: file that keeps what was used of token budgets; None to forget it.
    :ivar models: table of the models whose files other nodes may read; None for none.
    :ivar crowd: None for as many connections as the process may have files.
    """

    routes: Path
    drain_s: float = DRAIN_S
    deadlines: Deadlines = field(default_factory=Deadlines)
    process_metrics: bool = True
    control: Path | None = None
    feed: FeedLimits = field(default_factory=FeedLimits)
    keys: KeyPlaces | None = None
    accounts: Path | None = None
    crowd: CrowdLimits | None = None
    models: Path | None = None


class Gateway(NamedTuple):
    """What runs. :ivar door: for clients. :ivar front: what their requests pass first."""

    door: ClientDoor
    front: FrontDoor


@asynccontextmanager
async def running(
    options: GatewayOptions, sockets: list[socket.socket], peers: Sequence[socket.socket] = ()
) -> AsyncIterator[Gateway]:
    """A gateway that serves on these sockets, and drains when the context ends.

    :param peers: for other nodes; served while the table names a certificate.
    """
    metrics = GatewayMetrics(process=options.process_metrics)
    news, certificate, traffic = News(), Certificate(), TrafficCount()
    telemetry = Telemetry(metrics)

    def answers_again() -> None:
        news.tell()
        relay.answers_again()

    upstreams = Upstreams(options.deadlines, metrics, certificate, answers_again)
    feed = RoutesFeed(options.feed, asking)
    keys = KeyWatch(options.keys, lambda ring: gate.keys_changed(ring))
    gate = Gate(lambda: keys.ring)
    kept = AccountsFile(options.accounts, gate.accounts) if options.accounts else None

    async def prepare(table: RoutingTable) -> None:
        await certificate.look(table.tls)

    def changed(table: RoutingTable) -> None:
        upstreams.table_changed(table)
        traffic.table_changed(table)
        telemetry.table_changed(table)
        feed.table_changed(table)
        door.cut(table.revoked)
        news.tell()
        relay.table_changed(table)

    watch = TableWatch(options.routes, metrics, changed, prepare)
    relay = Relay(watch, upstreams, metrics, options.deadlines, news, traffic)
    names = await asyncio.to_thread(machine_names)
    front = FrontDoor(gate, lambda: watch.table.front if watch.table else _FRONT, names)
    client_tls = ClientTls()
    runners = [
        web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=IDLE_S,
            shutdown_timeout=options.drain_s + _LAST_WORDS_S,
        )
        for app in (
            make_app(watch, upstreams, relay, metrics, telemetry, front),
            make_peer_app(watch, relay, metrics, feed, telemetry, ModelFiles(options.models)),
        )
    ]
    runner, peer_runner = runners
    for one in runners:
        await one.setup()
    assert runner.server is not None
    door = PeerDoor(peer_runner, peers)
    clients = ClientDoor(runner.server, sockets, client_tls, options.crowd)
    front.troubles += [lambda: client_tls.error]

    def report() -> TrafficReport | None:
        table = watch.table
        if table is None:
            return None
        return traffic.report(table, upstreams.in_flight, upstreams.suspicion.nodes)

    async def look() -> None:
        settings = front.settings
        await client_tls.look(settings.certificate, settings.key)

    await watch.refresh()
    await keys.refresh()
    await look()
    if kept is not None:
        await kept.load()

    async def follow() -> None:
        await _follow_certificate(watch, certificate, upstreams, door, news, look)

    following = asyncio.create_task(lasting("following certificates", follow))
    tasks = [
        following,
        asyncio.create_task(lasting("following the routing table", watch.run)),
        asyncio.create_task(lasting("following API keys", keys.run)),
        asyncio.create_task(lasting("looking after connections", clients.run)),
    ]
    if kept is not None:
        tasks.append(asyncio.create_task(lasting("keeping token budgets", kept.run)))
    if options.control is not None:
        posting = partial(post_traffic, options.control, report)
        tasks.append(asyncio.create_task(lasting("telling of traffic", posting)))
    try:
        await clients.open()
        yield Gateway(clients, front)
    finally:
        deadline = asyncio.get_running_loop().call_later(options.drain_s, relay.stop)
        # Before the door closes, so that it is not opened again.
        following.cancel()
        door.close()
        clients.close()
        await asyncio.gather(*(one.cleanup() for one in runners))
        deadline.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await upstreams.close()
        await telemetry.close()
        if kept is not None:
            await kept.save()
        for listener in peers:
            listener.close()


async def _follow_certificate(
    watch: TableWatch,
    certificate: Certificate,
    upstreams: Upstreams,
    door: PeerDoor,
    news: News,
    look: Callable[[], Awaitable[None]],
) -> None:
    """Open the peer door with what the table names, and again when the files change.

    :param look: at the clients' certificate.
    """
    shown: ssl.SSLContext | None = None
    while True:
        seen = news.count
        if watch.table is not None:
            await certificate.look(watch.table.tls)
        await look()
        if certificate.server is not shown:
            shown = certificate.server
            await door.show(shown)
            upstreams.certificate_changed()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CERTIFICATE_LOOK_S):
                await news.after(seen)


async def serve(
    options: GatewayOptions, sockets: list[socket.socket], peers: Sequence[socket.socket] = ()
) -> None:
    """Serve until SIGTERM or SIGINT. SIGHUP does nothing: the table is followed anyway."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _log.debug("SIGHUP: nothing to reload"))
    notifier = Notifier()
    async with running(options, sockets, peers) as gateway:
        addresses = gateway.door.addresses
        _log.info("gateway ready", addresses=[_shown(place) for place in addresses])
        closed = gateway.front.gate.closed
        if closed and not all(map(_from_here_only, addresses)):
            _log.warning("other machines are not served", reason=closed)
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


def _from_here_only(place: object) -> bool:
    return not isinstance(place, tuple) or loopback(str(place[0]))


def _shown(place: object) -> str:
    if isinstance(place, tuple):
        host, port = str(place[0]), place[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(place)
