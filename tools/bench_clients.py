"""`make bench-clients`: what clients that only follow the routing table cost a node.

One gateway, and N followers in another process, each with an open TLS connection to the peer door.
Measured of the gateway's process alone: resident memory for each follower, CPU time while nothing
happens, and CPU time and latency of a change that all of them are told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from meshd import logging
from meshd.gateway.listen import Address, open_sockets
from meshd.gateway.routes import ModelState, Peer, Route, RoutingTable, Target
from meshd.gateway.serve import GatewayOptions, running
from meshd.gateway.table_file import write_table
from meshd.mesh.credentials import from_secret, write_tls
from meshd.mesh.identity import identity
from meshd.mesh.tls import client_context, server_name

_SECRET = b"kq7d-x2mv-9rtp-4hzn-c8wb-6jfs-3ygl-1aeu"
# A member may follow with so many connections at once.
_PER_MEMBER = 50
_TICKS = os.sysconf("SC_CLK_TCK")
_AT_ONCE = 16


def _member(folder: Path) -> tuple[str, str]:
    """A node's certificate in that folder. :returns: its id and its mesh's."""
    folder.mkdir(parents=True, exist_ok=True)
    held = from_secret(identity(folder, {}), _SECRET, "bench")
    write_tls(held, folder / "tls", datetime.now(UTC))
    return held.node_id, held.mesh_id


def _table(models: int, nodes: int, generation: int, more: RoutingTable) -> RoutingTable:
    """As of a mesh with that many models, two replicas each, and nodes."""
    peers = tuple(
        Peer(f"{number:016d}", f"10.0.{number // 250}.{number % 250 + 1}:9338", f"gpu-{number}")
        for number in range(nodes)
    )
    routes = tuple(
        Route(
            f"org/model-{number}",
            ModelState.READY,
            tuple(
                Target(peer.node, "", True, 4, peer.address, weights="f" * 16, busy=generation % 4)
                for peer in (peers[number % nodes], peers[(number + 1) % nodes])
            ),
            context=8192,
        )
        for number in range(models)
    )
    return replace(more, generation=generation, routes=routes, peers=peers)


async def _serve(folder: Path, models: int, nodes: int) -> None:
    """The gateway's process: says where it is, then writes a table for each line that it reads."""
    logging.configure()
    node, mesh = await asyncio.to_thread(_member, folder)
    sockets = open_sockets([Address("127.0.0.1", 0)])
    peers = open_sockets([Address("127.0.0.1", 0)])
    routes = folder / "routes.json"
    bare = RoutingTable(node=node, mesh=mesh, tls=str(folder / "tls"))
    generation = 1
    table = _table(models, nodes, generation, bare)
    await asyncio.to_thread(write_table, routes, table)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with running(GatewayOptions(routes, drain_s=0.1), sockets, peers):
        port = peers[0].getsockname()[1]
        print(json.dumps({"port": port, "name": server_name(node, mesh)}), flush=True)
        while await reader.readline():
            generation += 1
            table = _table(models, nodes, generation, bare)
            await asyncio.to_thread(write_table, routes, table)


class _Follower:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.heard_s = 0.0
        self.bytes = 0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while line := await self.reader.readline():
            self.bytes += len(line)
            if line.startswith(b"data: "):
                self.heard_s = time.monotonic()

    async def close(self) -> None:
        self.task.cancel()
        self.writer.transport.abort()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await self.task


async def _follow(port: int, name: str, context: ssl.SSLContext) -> _Follower:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name, limit=1 << 20
    )
    writer.write(b"GET /mesh/routes HTTP/1.1\r\nHost: n\r\nAccept: text/event-stream\r\n\r\n")
    return _Follower(reader, writer)


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def _until_told(followers: list[_Follower], since_s: float) -> list[float]:
    """Seconds after `since_s` when each of them heard of a change."""
    async with asyncio.timeout(60):
        while not all(follower.heard_s > since_s for follower in followers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return sorted(follower.heard_s - since_s for follower in followers)


async def _measure(clients: int, idle_s: float, changes: int, models: int, nodes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        gateway = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tools.bench_clients", "--serve", str(folder / "n"),
            "--models", str(models), "--nodes", str(nodes),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert gateway.stdin is not None
        assert gateway.stdout is not None
        try:
            where = json.loads(await asyncio.wait_for(gateway.stdout.readline(), 30))
            contexts = []
            for number in range(-(-clients // _PER_MEMBER)):
                home = folder / f"c{number}"
                await asyncio.to_thread(_member, home)
                contexts.append(client_context(home / "tls"))
            # One first, so that what is loaded on first use is not charged to the others.
            warm = await _follow(where["port"], where["name"], contexts[0])
            await _until_told([warm], 0.0)
            await warm.close()
            await asyncio.sleep(0.5)
            before_kib, before_s = _resident_kib(gateway.pid), _cpu_s(gateway.pid)
            followers: list[_Follower] = []
            began = time.monotonic()
            while len(followers) < clients:
                batch = range(len(followers), min(clients, len(followers) + _AT_ONCE))
                followers += await asyncio.gather(
                    *(
                        _follow(where["port"], where["name"], contexts[n // _PER_MEMBER])
                        for n in batch
                    )
                )
            await _until_told(followers, began)
            joined_s, join_cpu_s = time.monotonic() - began, _cpu_s(gateway.pid) - before_s
            size = followers[-1].bytes
            idle_kib = _resident_kib(gateway.pid)
            cpu_s = _cpu_s(gateway.pid)
            await asyncio.sleep(idle_s)
            idle_cpu_s = _cpu_s(gateway.pid) - cpu_s
            told: list[float] = []
            cpu_s = _cpu_s(gateway.pid)
            for _ in range(changes):
                since = time.monotonic()
                gateway.stdin.write(b"\n")
                told += await _until_told(followers, since)
                await asyncio.sleep(0.5)
            change_cpu_s = (_cpu_s(gateway.pid) - cpu_s) / changes
            after_kib = _resident_kib(gateway.pid)
            for follower in followers:
                await follower.close()
        finally:
            gateway.kill()
            await gateway.wait()
    told.sort()
    rows = [
        ("clients connected", f"{clients}"),
        ("size of a table on the wire", f"{size} bytes"),
        ("the gateway without clients", f"{before_kib / 1024:.1f} MiB"),
        ("memory a client, idle", f"{(idle_kib - before_kib) / clients:.1f} KiB"),
        ("memory a client, after changes", f"{(after_kib - before_kib) / clients:.1f} KiB"),
        ("CPU a client's joining", f"{join_cpu_s / clients * 1e3:.2f} ms"),
        ("all of them joined in", f"{joined_s:.1f} s"),
        (f"CPU, idle for {idle_s:g} s", f"{idle_cpu_s / idle_s * 100:.2f} % of a core"),
        ("CPU a client, idle", f"{idle_cpu_s / idle_s / clients * 1e6:.1f} us/s"),
        ("CPU of a change", f"{change_cpu_s * 1e3:.0f} ms"),
        ("CPU of a change a client", f"{change_cpu_s / clients * 1e6:.0f} us"),
        ("change written until heard, median", f"{told[len(told) // 2] * 1e3:.0f} ms"),
        ("change written until heard, last", f"{told[-1] * 1e3:.0f} ms"),
    ]
    for what, value in rows:
        print(f"| {what:<36} | {value:>20} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--idle", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--changes", type=int, default=5)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(_serve(args.serve, args.models, args.nodes))
    else:
        asyncio.run(_measure(args.clients, args.idle, args.changes, args.models, args.nodes))


if __name__ == "__main__":
    main()
