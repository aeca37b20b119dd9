"""Measures round trips for as long as it runs: sockets, names and timers around `RttBook`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

import structlog

from meshd.mesh.record import RttRecord
from meshd.rtt.aside import Aside
from meshd.rtt.book import Probe, RttBook
from meshd.rtt.endpoint import version_of
from meshd.rtt.knock import Knocker
from meshd.rtt.ping import Pinger
from meshd.rtt.publish import revise
from meshd.rtt.reading import Reading
from meshd.rtt.tcp_info import TcpInfo
from meshd.rtt.window import RttWindow

_RESOLVE_DEADLINE_S = 5.0
_RESOLVE_AGAIN_S = 600.0
_RESOLVE_RETRY_S = 60.0
_TCP_INTERVAL_S = 10.0
_TCP_MAX_INTERVAL_S = 120.0
_LOOK_AGAIN_S = 300.0

_log = structlog.get_logger(__name__)


class ReadsTcpInfo(Protocol):
    async def read(self, ports: frozenset[int]) -> tuple[Reading, ...]: ...


Resolve = Callable[[str], list[str]]
"""Blocking: IP addresses of a host name. :raises OSError: there are none."""


def resolve(name: str) -> list[str]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Prober:
    """One for the node. Everything but `run` may be called at any time and returns at once.

    :param me: our node id. :param clock: monotonic, in seconds.
    :param on_change: called in the event loop when `records` became different.
    """

    def __init__(
        self,
        me: str,
        *,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        tcp_info: ReadsTcpInfo | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        self._book = RttBook(me)
        self._clock = clock
        self._on_change = on_change
        self._tcp_info = tcp_info or TcpInfo()
        self._resolve = resolve
        self._names = Aside("resolve", _RESOLVE_DEADLINE_S)
        self._asked: dict[str, float] = {}
        self._needed: frozenset[str] = frozenset()
        self._told: tuple[RttRecord, ...] = ()
        self._probes = asyncio.Event()
        self._peers = asyncio.Event()
        self._tcp_peers = asyncio.Event()

    def follow(
        self, peers: Mapping[str, tuple[str, ...]], needed: frozenset[str] = frozenset()
    ) -> None:
        """Measure exactly these peers (id to ``host:port``s), the needed ones always and first."""
        if not self._book.follow(peers, needed, self._clock()):
            return
        self._needed = needed
        for event in (self._probes, self._peers, self._tcp_peers):
            event.set()
        self._revise()

    def windows(self) -> Mapping[str, RttWindow]:
        return self._book.windows(self._clock())

    def records(self) -> tuple[RttRecord, ...]:
        """At most 32, needed and nearest first; the same until a change is worth telling."""
        return self._told

    def best_address(self, peer: str) -> str | None:
        """The peer's ``host:port`` that answers best, None while none has."""
        return self._book.best_address(peer)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ping(), name="rtt ping")
            tasks.create_task(self._read_connections(), name="rtt tcp_info")
            tasks.create_task(self._resolve_names(), name="rtt names")

    async def _ping(self) -> None:
        pinger = Pinger(self._answered, self._clock)
        knocker = Knocker(self._answered, self._lost)
        try:
            while True:
                self._probes.clear()
                for key in pinger.expire():
                    self._lost(key)
                versions = pinger.families() | pinger.forbidden
                probe = self._book.next_probe(self._clock(), versions)
                if probe is not None:
                    if version_of(probe.ip) in pinger.forbidden:
                        sent = knocker.send(probe, probe.ip, self._book.port(probe))
                    else:
                        sent = pinger.send(probe, probe.ip)
                    if not sent:
                        self._lost(probe)
                times = (self._book.due_s(versions), pinger.next_expiry_s())
                next_s = min((at for at in times if at is not None), default=None)
                wait_s = _LOOK_AGAIN_S if next_s is None else next_s - self._clock()
                await _wait(self._probes, min(max(wait_s, 0.01), _LOOK_AGAIN_S))
        finally:
            pinger.close()
            knocker.close()

    async def _read_connections(self) -> None:
        interval_s = _TCP_INTERVAL_S
        complained = False
        while True:
            self._tcp_peers.clear()
            ports = self._book.ports()
            if not ports:
                await self._tcp_peers.wait()
                continue
            try:
                readings = await self._tcp_info.read(ports)
            except (OSError, TimeoutError) as error:
                if not complained:
                    complained = True
                    _log.warning("cannot read tcp_info", error=str(error) or "no answer in time")
                interval_s = _TCP_MAX_INTERVAL_S
            else:
                news = self._book.connections(readings, self._clock())
                interval_s = _TCP_INTERVAL_S if news else min(interval_s * 2, _TCP_MAX_INTERVAL_S)
                if news:
                    self._revise()
            await asyncio.sleep(_TCP_INTERVAL_S)
            if await _wait(self._tcp_peers, interval_s - _TCP_INTERVAL_S):
                interval_s = _TCP_INTERVAL_S

    async def _resolve_names(self) -> None:
        while True:
            self._peers.clear()
            names, now_s = self._book.names(), self._clock()
            self._asked = {name: self._asked.get(name, now_s) for name in names}
            due = [name for name in names if self._asked[name] <= now_s]
            for name in due:
                self._asked[name] = self._clock() + await self._look_up(name)
            wait_s = min(self._asked.values(), default=now_s + _LOOK_AGAIN_S) - self._clock()
            await _wait(self._peers, max(wait_s, 1.0))

    async def _look_up(self, name: str) -> float:
        """Seconds until it should be asked for again."""
        try:
            ips = await self._names.call(lambda: self._resolve(name))
        except (OSError, TimeoutError, UnicodeError):
            return _RESOLVE_RETRY_S
        self._book.resolved(name, ips)
        self._probes.set()
        return _RESOLVE_AGAIN_S

    def _answered(self, key: Hashable, rtt_ms: float) -> None:
        assert isinstance(key, Probe)
        self._book.answered(key, rtt_ms, self._clock())
        self._probes.set()
        self._revise()

    def _lost(self, key: Hashable) -> None:
        assert isinstance(key, Probe)
        self._book.lost(key, self._clock())
        self._revise()

    def _revise(self) -> None:
        windows = self._book.steady_windows(self._clock())
        told = revise(self._told, windows, self._needed)
        if told != self._told:
            self._told = told
            self._on_change()


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether it came in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    return event.is_set()
