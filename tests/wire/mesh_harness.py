"""Several gateways of one mesh on this machine's loopback, each with certificates of its own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from meshd.gateway.listen import Address, open_sockets
from meshd.gateway.routes import Front, ModelState, Peer, Route, RoutingTable, Target
from meshd.gateway.routes_feed import FeedLimits
from meshd.gateway.serve import GatewayOptions, running
from meshd.gateway.table_file import write_table
from meshd.gateway.upstreams import Deadlines
from meshd.keys.key_folder import KeyPlaces
from meshd.mesh.credentials import from_secret, write_tls
from meshd.mesh.identity import identity
from meshd.mesh.tls import client_context, server_name
from tests.wire.gateway_harness import CHAT, Running

SECRET = b"kq7d-x2mv-9rtp-4hzn-c8wb-6jfs-3ygl-1aeu"
SLOTS = 4


@dataclass(frozen=True)
class Member:
    """A node's certificate. :ivar folder: its own, short enough for a socket's path."""

    id: str
    mesh: str
    folder: Path

    @property
    def tls(self) -> Path:
        return self.folder / "tls"


def member(folder: Path, name: str, secret: bytes = SECRET) -> Member:
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    held = from_secret(identity(home, {}), secret, "lab")
    write_tls(held, home / "tls", datetime.now(UTC))
    return Member(held.node_id, held.mesh_id, home)


@dataclass
class Node:
    """A gateway with a peer door. :ivar address: of that door."""

    member: Member
    address: str
    running: Running
    generation: int = 1
    _tell: object = field(default=None, repr=False)

    @property
    def id(self) -> str:
        return self.member.id

    async def post(self, body: object, path: str = CHAT) -> tuple[int, bytes, dict[str, str]]:
        return await self.running.post(body, path)

    async def metric(self, line: str) -> float:
        return await self.running.metric(line)

    async def tell(self, table: RoutingTable) -> None:
        """Let this node's gateway obey a table, and wait until it does."""
        self.generation += 1
        fresh = replace(
            table,
            generation=self.generation,
            node=self.id,
            mesh=self.member.mesh,
            tls=str(self.member.tls),
        )
        await asyncio.to_thread(write_table, self.running.routes, fresh)
        async with asyncio.timeout(10):
            while await self.metric("meshd_gateway_table_generation") != self.generation:
                await asyncio.sleep(0.01)

    def own(self, path: Path, *, slots: int = SLOTS, ready: bool = True) -> Target:
        """An engine of this node, as its own table has it."""
        return Target(self.id, str(path), ready, slots)

    def seen(self, *, slots: int = SLOTS, suspect: bool = False, busy: int = 0) -> Target:
        """An engine of this node, as the others' tables have it."""
        return Target(self.id, "", True, slots, address=self.address, suspect=suspect, busy=busy)

    def peer(self) -> Peer:
        return Peer(self.id, self.address)


def table(
    targets: Sequence[Target],
    nodes: Sequence[Node] = (),
    *,
    model: str = "m",
    state: ModelState = ModelState.READY,
    revoked: tuple[str, ...] = (),
    peers: Sequence[Peer] = (),
    client: bool = False,
) -> RoutingTable:
    return RoutingTable(
        routes=(Route(model, state, tuple(targets)),),
        peers=(*(node.peer() for node in nodes), *peers),
        revoked=revoked,
        client=client,
        # Tests of refusals do not wait for what will not come.
        front=Front(wait_s=0),
    )


@asynccontextmanager
async def node(
    folder: Path,
    name: str,
    *,
    deadlines: Deadlines | None = None,
    feed: FeedLimits | None = None,
    control: Path | None = None,
    drain_s: float = 0.3,
    secret: bytes = SECRET,
    keys: KeyPlaces | None = None,
) -> AsyncIterator[Node]:
    """A gateway that knows its certificate and nothing else yet."""
    who = member(folder, name, secret)
    clients = open_sockets([Address("127.0.0.1", 0)])
    peers = open_sockets([Address("127.0.0.1", 0)])
    address = f"127.0.0.1:{peers[0].getsockname()[1]}"
    base = f"http://127.0.0.1:{clients[0].getsockname()[1]}"
    routes = who.folder / "routes.json"
    write_table(routes, RoutingTable(generation=1, node=who.id, mesh=who.mesh, tls=str(who.tls)))
    options = GatewayOptions(
        routes,
        drain_s,
        deadlines or Deadlines(),
        process_metrics=False,
        control=control,
        feed=feed or FeedLimits(),
        keys=keys,
        models=routes.with_name("models.json"),
    )
    async with (
        running(options, clients, peers),
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0)
        ) as http,
    ):
        yield Node(who, address, Running(base, routes, http))


@asynccontextmanager
async def caller(
    who: Member, *, context: ssl.SSLContext | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that shows a member's certificate; pass `server_hostname=name_of(node)`."""
    connector = aiohttp.TCPConnector(ssl=context or client_context(who.tls), limit=0)
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        yield http


def name_of(node: Node) -> str:
    return server_name(node.id, node.member.mesh)


@asynccontextmanager
async def mute(*, backlog: int = 16, full: bool = False) -> AsyncIterator[str]:
    """An address of which nobody answers: it connects and stays silent, or does not even connect.

    :param full: its backlog is full, so that a connection is never made.
    """
    loop = asyncio.get_running_loop()
    fillers: list[socket.socket] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0 if full else backlog)
        place = listener.getsockname()
        try:
            if full:
                for _ in range(8):
                    filler = socket.socket()
                    filler.setblocking(False)
                    fillers.append(filler)
                    try:
                        await asyncio.wait_for(loop.sock_connect(filler, place), 0.3)
                    except TimeoutError:
                        break
            yield f"127.0.0.1:{place[1]}"
        finally:
            for filler in fillers:
                filler.close()
