"""How a node that is none of the mesh's members follows it: the routing table of a node nearby.

All that it holds is one connection and the last table. Its gateway goes on with that table when
all nodes are out of reach.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import structlog

from meshd.errors import UserError
from meshd.gateway.far_table import for_client
from meshd.gateway.patient_socket import factory
from meshd.gateway.routes import RoutingTable, RoutingTableError, decode
from meshd.mesh.tls import client_context, handshake_problem, peer_node_id

_log = structlog.get_logger("meshd.gateway")

DEFAULT_PORT = 9338

_MAX_EVENT_BYTES = 4 * 1024 * 1024
_MAX_KNOWN = 64


@dataclass(frozen=True, slots=True)
class FollowTimes:
    """In seconds.

    :ivar silence: without a byte, after which the stream counts as dead; a node says something
        every 30 s.
    :ivar first, last: delays between two rounds over all nodes; each is drawn from 0 to as much.
    """

    connect: float = 4.0
    silence: float = 75.0
    first: float = 0.5
    last: float = 30.0


def order(static: Iterable[str], table: RoutingTable | None, lucky: Iterable[str]) -> list[str]:
    """Addresses to try. Pure.

    :param static: as configured; without a port the default one. :param table: the last one.
    :param lucky: those that worked, the last one first.
    """
    nodes = [peer.address for peer in table.peers] if table else []
    configured = [_with_port(address) for address in static]
    revived = [one for one in lucky if one in nodes or one in configured]
    return [*dict.fromkeys((*revived, *nodes, *configured))][:_MAX_KNOWN]


class RouteFollower:
    """:ivar connected: address of the node whose table is followed, "" while there is none.

    :ivar problem: why nobody is followed, "" while somebody is.
    """

    def __init__(
        self,
        me: str,
        tls: Path,
        peers: Iterable[str],
        on_table: Callable[[RoutingTable], None],
        *,
        last: RoutingTable | None = None,
        patience_ms: int = 5000,
        times: FollowTimes | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """:param me: this node's id. :param tls: folder with its certificate in the mesh.

        :param peers: ``host`` or ``host:port``, as ``mesh.peers`` has it.
        :param on_table: called with each new table as this node's gateway can obey it: every
            target is another node's.
        :param last: the table from before a restart; its nodes are tried first.
        :param chance: draws the delays.
        """
        self.connected = ""
        self.problem = "not connected yet"
        self.table = last
        self._me = me
        self._tls = tls
        self._static = [_with_port(address) for address in peers]
        self._on_table = on_table
        self._patience_ms = patience_ms
        self._times = times or FollowTimes()
        self._chance = chance or random.Random()  # noqa: S311 -- spreads load, guards nothing
        self._lucky: list[str] = []
        self._tag = ""

    async def run(self) -> None:
        """Follow until cancelled."""
        delay_s = self._times.first
        while True:
            heard = False
            for address in order(self._static, self.table, self._lucky):
                heard = await self._follow(address)
                if heard:
                    break
            else:
                if not self._static and self.table is None:
                    self.problem = "mesh.peers names no node"
            delay_s = self._times.first if heard else min(2 * delay_s, self._times.last)
            # A node that goes leaves all its clients at once; they come back one by one.
            await asyncio.sleep(self._chance.uniform(0, delay_s))

    async def _follow(self, address: str) -> bool:
        """Until the stream ends; whether anything came of it."""
        heard = False
        try:
            async for text in self._events(address):
                if not heard:
                    heard, self.connected, self.problem = True, address, ""
                    self._lucky = [address, *(one for one in self._lucky if one != address)][:8]
                    _log.info("follows a node of the mesh", address=address)
                if text is not None:
                    self._take(text)
            self.problem = f"{address} ended the stream"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, UserError) as error:
            why = handshake_problem(error) or str(error) or "no answer in time"
            self.problem = f"{address}: {why}"
            if isinstance(error, ValueError):
                # It answers, but not with what we need.
                self._lucky = [one for one in self._lucky if one != address]
                self.connected = ""
                return False
        if heard:
            _log.info("follows it no more", address=address, why=self.problem)
        self.connected = ""
        return heard

    def _take(self, text: bytes) -> None:
        table = for_client(decode(text), self._me, str(self._tls))
        if table != self.table:
            self.table = table
            self._on_table(table)

    async def _events(self, address: str) -> AsyncIterator[bytes | None]:
        """Each table's JSON; None for every other sign of life.

        :raises RoutingTableError: what came is no stream of tables.
        """
        times = self._times
        connector = aiohttp.TCPConnector(
            ssl=await asyncio.to_thread(_any_member, self._tls),
            force_close=True,
            socket_factory=factory(self._patience_ms),
        )
        timeout = aiohttp.ClientTimeout(
            total=None, connect=times.connect, sock_connect=times.connect, sock_read=times.silence
        )
        headers = {"Accept": "text/event-stream"}
        if self._tag and self.table is not None:
            headers["Last-Event-ID"] = self._tag
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
            http.get(f"https://{address}/mesh/routes", headers=headers) as answer,
        ):
            transport = answer.connection.transport if answer.connection else None
            tls = transport.get_extra_info("ssl_object") if transport else None
            if tls is None:
                raise RoutingTableError("it hung up")
            peer_node_id(tls)  # a member, and under its own name
            if answer.status != 200 or answer.content_type != "text/event-stream":
                raise RoutingTableError(f"it answered {answer.status}")
            held = bytearray()
            async for piece in answer.content.iter_any():
                held += piece
                if len(held) > _MAX_EVENT_BYTES:
                    raise RoutingTableError("it sent an endless event")
                *events, rest = bytes(held).split(b"\n\n")
                held = bytearray(rest)
                yield None
                for event in events:
                    if (text := self._data(event)) is not None:
                        yield text

    def _data(self, event: bytes) -> bytes | None:
        text: bytes | None = None
        for line in event.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name == b"id":
                self._tag = value.decode("ascii", "replace")[:64]
            elif name == b"data":
                text = value
        return text


def _any_member(tls: Path) -> ssl.SSLContext:
    """Of a configured peer only the address is known; each member of the mesh will do."""
    context = client_context(tls)
    context.check_hostname = False
    return context


def _with_port(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and (":" not in host or host.endswith("]")):
        return address
    bare = f"[{address}]" if ":" in address and not address.startswith("[") else address
    return f"{bare}:{DEFAULT_PORT}"
