"""The engines as this gateway sees them: connections, requests in flight, and who is suspect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp

from meshd.gateway.certificate import Certificate
from meshd.gateway.choice import place
from meshd.gateway.engine_call import Door, EngineFailed, trace
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.patient_socket import factory
from meshd.gateway.routes import RoutingTable, Target
from meshd.gateway.suspicion import Suspicion
from meshd.gateway.unix_connector import PatientUnixConnector
from meshd.mesh.tls import server_name

# llama-server closes an idle connection after 5 s; we let go first, so that none breaks in use.
_KEEPALIVE_S = 3.0
# A gateway keeps them for 75 s; each costs the other node memory and a keepalive packet a second.
_PEER_KEEPALIVE_S = 20.0
_PROBE_S = 2.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the gateway waits, in seconds.

    :ivar connect: for an engine's socket to accept.
    :ivar answer: for the answer's head. An engine that does not stream sends it with the last
        token, so this is as long as llama-server's own limit (``--timeout``).
    :ivar idle: between two pieces of a stream, and for a client to take one; llama-server sends a
        comment every 30 s (``--sse-ping-interval``).
    :ivar client_body: between two pieces of a request's body.
    :ivar news: for a change that lets a request be served whose last target just failed.
    """

    connect: float = 2.0
    answer: float = 3600.0
    idle: float = 300.0
    client_body: float = 60.0
    news: float = 2.0


@dataclass(slots=True)
class _Pool:
    """:ivar uses: requests that run on its connections."""

    door: Door
    uses: int = 0


class Upstreams:
    """One small pool for each engine's socket, and one for each other node.

    :ivar in_flight: requests at each place, as `choose` wants it.
    """

    def __init__(
        self,
        deadlines: Deadlines,
        metrics: GatewayMetrics,
        certificate: Certificate | None = None,
        cleared: Callable[[], None] = lambda: None,
    ) -> None:
        """:param cleared: called when a suspect answers again."""
        self.in_flight: dict[str, int] = {}
        self.suspicion = Suspicion(self._healthy, metrics, cleared)
        self._deadlines = deadlines
        self._certificate = certificate or Certificate()
        self._pools: dict[str, _Pool] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._known: frozenset[str] | None = None
        self._table = RoutingTable()

    @property
    def suspects(self) -> frozenset[str]:
        """Keys and places that failed and have not answered a probe."""
        return self.suspicion.keys

    @contextmanager
    def request(self, model: str, target: Target) -> Iterator[Door]:
        """Counts one request at a target while it lasts, and says where to send it.

        :raises EngineFailed: nothing can be sent there.
        """
        where = place(model, target)
        pool = self._pools.get(target.key)
        if pool is None:
            pool = self._pools[target.key] = _Pool(self._door(target, keep=True))
        self.in_flight[where] = self.in_flight.get(where, 0) + 1
        pool.uses += 1
        try:
            yield pool.door
        finally:
            self.in_flight[where] -= 1
            if not self.in_flight[where]:
                del self.in_flight[where]
            pool.uses -= 1
            if not pool.uses:
                current = self._pools.get(target.key) is pool
                unlisted = self._known is not None and target.key not in self._known
                if current and unlisted:
                    del self._pools[target.key]
                if not current or unlisted:
                    self._close(pool)

    def table_changed(self, table: RoutingTable) -> None:
        """Believe the brain, and forget engines and nodes that are no longer listed."""
        self._known = frozenset(target.key for route in table.routes for target in route.targets)
        before, self._table = self._table, table
        self.suspicion.table_changed(table)
        self._forget(renew=(table.patience_ms, table.mesh) != (before.patience_ms, before.mesh))

    def certificate_changed(self) -> None:
        """Show the new one from the next connection on."""
        self._forget(renew=True)

    def _forget(self, *, renew: bool) -> None:
        for key, pool in [*self._pools.items()]:
            unlisted = self._known is not None and key not in self._known
            if (renew and pool.door.remote) or (unlisted and not pool.uses):
                # Requests that run on it go on; the last one closes it.
                del self._pools[key]
                if not pool.uses:
                    self._close(pool)

    async def close(self) -> None:
        """Close all connections and end all probes."""
        await self.suspicion.close()
        for pool in self._pools.values():
            self._close(pool)
        self._pools.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _close(self, pool: _Pool) -> None:
        task = asyncio.create_task(pool.door.session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _door(self, target: Target, *, keep: bool) -> Door:
        """:param keep: connections after use; at most `choice.MAX_IN_FLIGHT_PER_TARGET`.

        :raises EngineFailed: there is no certificate to show to another node.
        """
        if target.socket:
            base, name = "http://engine", None
            connect_s = self._deadlines.connect
            connector: aiohttp.BaseConnector = PatientUnixConnector(
                target.socket,
                limit=0,
                force_close=not keep,
                keepalive_timeout=_KEEPALIVE_S if keep else None,
            )
        else:
            table = self._table
            if self._certificate.client is None or not table.mesh:
                raise EngineFailed("no_certificate", lost=False)
            base, name = f"https://{target.address}", server_name(target.node, table.mesh)
            connect_s = min(self._deadlines.connect, table.patience_ms / 1000)
            connector = aiohttp.TCPConnector(
                limit=0,
                force_close=not keep,
                keepalive_timeout=_PEER_KEEPALIVE_S if keep else None,
                ssl=self._certificate.client,
                socket_factory=factory(table.patience_ms),
            )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_s, sock_connect=connect_s)
            if name
            else aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            auto_decompress=False,
            trace_configs=[trace()],
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
        )
        return Door(session, base, name)

    async def _healthy(self, target: Target) -> bool:
        # A connection of its own: a pooled one would say nothing about who listens now.
        try:
            door = self._door(target, keep=False)
            path = "/mesh/health" if door.remote else "/health"
            async with (
                asyncio.timeout(_PROBE_S),
                door.session,
                door.session.get(door.base + path, server_hostname=door.server_name) as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, EngineFailed):
            return False
