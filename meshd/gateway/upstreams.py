"""The engines as this gateway sees them: connections, requests in flight, and who is suspect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from meshd.gateway.certificate import Certificate
from meshd.gateway.choice import place
from meshd.gateway.engine_call import Door, EngineFailed, status_of
from meshd.gateway.engine_http.connection import Connection
from meshd.gateway.engine_http.dial import Make, dial_tls, dial_unix
from meshd.gateway.engine_http.pool import Pool
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.routes import RoutingTable, Target
from meshd.gateway.suspicion import Suspicion
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
class _Used:
    """:ivar uses: requests that run on its connections."""

    door: Door
    uses: int = 0


class _InUse:
    """A context of its own: one made of a generator costs a request three times as much."""

    __slots__ = ("_target", "_upstreams", "_used", "_where")

    def __init__(self, upstreams: Upstreams, model: str, target: Target) -> None:
        self._upstreams = upstreams
        self._target = target
        self._where = place(model, target)

    def __enter__(self) -> Door:
        self._used = self._upstreams._take(self._where, self._target)
        return self._used.door

    def __exit__(self, *_: object) -> None:
        self._upstreams._leave(self._where, self._target.key, self._used)


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
        self._used: dict[str, _Used] = {}
        self._known: frozenset[str] | None = None
        self._table = RoutingTable()

    @property
    def suspects(self) -> frozenset[str]:
        """Keys and places that failed and have not answered a probe."""
        return self.suspicion.keys

    def request(self, model: str, target: Target) -> _InUse:
        """A context that counts one request at a target, and says where to send it.

        :raises EngineFailed: when it is entered: nothing can be sent there.
        """
        return _InUse(self, model, target)

    def _take(self, where: str, target: Target) -> _Used:
        key = target.key
        used = self._used.get(key)
        if used is None:
            used = self._used[key] = _Used(self._door(target))
        self.in_flight[where] = self.in_flight.get(where, 0) + 1
        used.uses += 1
        return used

    def _leave(self, where: str, key: str, used: _Used) -> None:
        left = self.in_flight[where] - 1
        if left:
            self.in_flight[where] = left
        else:
            del self.in_flight[where]
        used.uses -= 1
        if not used.uses:
            current = self._used.get(key) is used
            unlisted = self._known is not None and key not in self._known
            if current and unlisted:
                del self._used[key]
            if not current or unlisted:
                used.door.pool.close()

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
        for key, used in [*self._used.items()]:
            unlisted = self._known is not None and key not in self._known
            if (renew and used.door.remote) or (unlisted and not used.uses):
                # Requests that run on it go on; the last one closes it.
                del self._used[key]
                if not used.uses:
                    used.door.pool.close()

    async def close(self) -> None:
        """Close all connections and end all probes."""
        await self.suspicion.close()
        for used in self._used.values():
            used.door.pool.close()
        self._used.clear()

    def _door(self, target: Target, *, keep: bool = True) -> Door:
        """:param keep: connections after use.

        :raises EngineFailed: there is no certificate to show to another node.
        """
        if target.socket:
            path = target.socket

            def to_engine(make: Make) -> Awaitable[Connection]:
                return dial_unix(path, make)

            keep_s = _KEEPALIVE_S if keep else 0.0
            return Door(Pool(to_engine, self._deadlines.connect, keep_s), "engine")
        table, context = self._table, self._certificate.client
        if context is None or not table.mesh:
            raise EngineFailed("no_certificate", lost=False)
        address, patience_ms = target.address, table.patience_ms
        name = server_name(target.node, table.mesh)

        def to_node(make: Make) -> Awaitable[Connection]:
            return dial_tls(address, context, name, patience_ms, make)

        connect_s = min(self._deadlines.connect, patience_ms / 1000)
        keep_s = _PEER_KEEPALIVE_S if keep else 0.0
        return Door(Pool(to_node, connect_s, keep_s), address, remote=True)

    async def _healthy(self, target: Target) -> bool:
        try:
            door = self._door(target, keep=False)
            async with asyncio.timeout(_PROBE_S):
                return await status_of(door, "/mesh/health" if door.remote else "/health") == 200
        except (EngineFailed, TimeoutError):
            return False
