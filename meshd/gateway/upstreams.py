"""The engines as this gateway sees them: connections, requests in flight, and who is suspect."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import structlog

from meshd.gateway.engine_call import trace
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.routes import RoutingTable
from meshd.gateway.unix_connector import PatientUnixConnector

_log = structlog.get_logger("meshd.gateway")

# llama-server closes an idle connection after 5 s; we let go first, so that none breaks in use.
_KEEPALIVE_S = 3.0
_PROBE_S = 2.0
_PROBE_FIRST_S = 0.25
_PROBE_LAST_S = 5.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the gateway waits, in seconds.

    :ivar connect: for an engine's socket to accept.
    :ivar answer: for the answer's head. An engine that does not stream sends it with the last
        token, so this is as long as llama-server's own limit (``--timeout``).
    :ivar idle: between two pieces of a stream, and for a client to take one; llama-server sends a
        comment every 30 s (``--sse-ping-interval``).
    :ivar client_body: between two pieces of a request's body.
    """

    connect: float = 2.0
    answer: float = 3600.0
    idle: float = 300.0
    client_body: float = 60.0


class Upstreams:
    """One small pool for each engine socket.

    :ivar in_flight: requests at each socket, as `choose` wants it.
    """

    def __init__(self, deadlines: Deadlines, metrics: GatewayMetrics) -> None:
        self.in_flight: dict[str, int] = {}
        self._deadlines = deadlines
        self._metrics = metrics
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._known: frozenset[str] = frozenset()

    @property
    def suspects(self) -> frozenset[str]:
        """Sockets that failed since the table changed and have not answered a probe."""
        return frozenset(self._probes)

    def session(self, socket: str) -> aiohttp.ClientSession:
        """The connections to one engine. At most `choice.MAX_IN_FLIGHT_PER_TARGET` are in use."""
        session = self._sessions.get(socket)
        if session is None:
            session = self._sessions[socket] = aiohttp.ClientSession(
                connector=PatientUnixConnector(socket, limit=0, keepalive_timeout=_KEEPALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._deadlines.connect),
                auto_decompress=False,
                trace_configs=[trace()],
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
            )
        return session

    @contextmanager
    def request(self, socket: str) -> Iterator[None]:
        """Counts one request at a socket while it lasts."""
        self.in_flight[socket] = self.in_flight.get(socket, 0) + 1
        try:
            yield
        finally:
            self.in_flight[socket] -= 1
            if not self.in_flight[socket]:
                del self.in_flight[socket]
                if socket not in self._known:
                    self._drop(socket)

    def suspect(self, socket: str) -> None:
        """Use this engine no more until the table changes or it answers a probe."""
        if socket in self._probes:
            return
        _log.warning("engine does not answer", socket=socket)
        self._probes[socket] = asyncio.create_task(self._probe(socket))
        self._metrics.suspects.set(len(self._probes))

    def table_changed(self, table: RoutingTable) -> None:
        """Believe the brain again, and forget engines that are no longer listed."""
        self._known = frozenset(target.socket for route in table.routes for target in route.targets)
        for probe in self._probes.values():
            probe.cancel()
        self._probes.clear()
        self._metrics.suspects.set(0)
        for socket in [*self._sessions]:
            if socket not in self._known and socket not in self.in_flight:
                self._drop(socket)

    async def close(self) -> None:
        """Close all connections and end all probes."""
        probes = [*self._probes.values()]
        self._probes.clear()
        for probe in probes:
            probe.cancel()
        for socket in [*self._sessions]:
            self._drop(socket)
        await asyncio.gather(*probes, *self._closing, return_exceptions=True)

    def _drop(self, socket: str) -> None:
        session = self._sessions.pop(socket, None)
        if session is not None:
            task = asyncio.create_task(session.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _probe(self, socket: str) -> None:
        delay_s = _PROBE_FIRST_S
        while not await self._healthy(socket):
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _PROBE_LAST_S)
        _log.info("engine answers again", socket=socket)
        if self._probes.get(socket) is asyncio.current_task():
            del self._probes[socket]
        self._metrics.suspects.set(len(self._probes))

    async def _healthy(self, socket: str) -> bool:
        # A connection of its own: a pooled one would say nothing about who listens now.
        connector = PatientUnixConnector(socket, force_close=True)
        timeout = aiohttp.ClientTimeout(total=_PROBE_S)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get("http://engine/health") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return False
