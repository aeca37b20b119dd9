"""A gateway in this process, and engines that misbehave on purpose, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from meshd.gateway.listen import Address, open_sockets
from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from meshd.gateway.serve import GatewayOptions, running
from meshd.gateway.table_file import write_table
from meshd.gateway.upstreams import Deadlines

CHAT = "/v1/chat/completions"
DEADLINE_S = 10.0

SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
CHUNKED_END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text.encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def plain(status: str, body: bytes, kind: str = "application/json", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}"
    return head.encode() + b"\r\n" + body


@dataclass
class Call:
    """One request as an engine saw it. :ivar nth: from 1, over all connections."""

    nth: int
    head: str
    body: bytes
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hung_up(self) -> None:
        """Returns when the gateway closes the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]


@dataclass
class ScriptedEngine:
    """Speaks just enough HTTP on a Unix socket. `/health` answers by itself.

    :ivar healthy: what `/health` says.
    """

    path: Path
    script: Script
    healthy: bool = True
    calls: list[Call] = field(default_factory=list)
    problems: list[BaseException] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if head.startswith("GET /health "):
                    status = "200 OK" if self.healthy else "503 Service Unavailable"
                    writer.write(plain(status, b"{}"))
                    continue
                size = next(
                    int(line.split(":")[1])
                    for line in head.lower().splitlines()
                    if line.startswith("content-length:")
                )
                call = Call(
                    len(self.calls) + 1, head, await reader.readexactly(size), writer, reader
                )
                self.calls.append(call)
                await self.script(call)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.problems.append(error)
        finally:
            writer.close()


@asynccontextmanager
async def engine(
    path: Path, script: Script, *, healthy: bool = True, backlog: int = 5
) -> AsyncIterator[ScriptedEngine]:
    scripted = ScriptedEngine(path, script, healthy)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(scripted.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        # One that is cancelled before it began closes nothing itself.
        task.add_done_callback(lambda _: writer.close())

    server = await asyncio.start_unix_server(connected, path, limit=1 << 20, backlog=backlog)
    try:
        yield scripted
    finally:
        server.close()
        for task in [*tasks]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(path.unlink, missing_ok=True)
    assert not scripted.problems, scripted.problems


def answering(text: str = "pong") -> Script:
    async def script(call: Call) -> None:
        await call.send(plain("200 OK", b'{"said":"%s"}' % text.encode()))

    return script


def streaming(pieces: Iterable[bytes], *, end: bytes = CHUNKED_END) -> Script:
    pieces = [*pieces]

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD)
        for piece in pieces:
            await call.send(chunk(piece))
        if end:
            await call.send(end)
        else:
            call.writer.close()

    return script


def table_of(
    *paths: Path, model: str = "m", generation: int = 1, slots: int = 4, **more: object
) -> RoutingTable:
    targets = tuple(Target("local", str(path), True, slots) for path in paths)
    route = Route(model, ModelState.READY, targets, aliases=("nick",))
    # Tests of refusals do not wait for what will not come.
    more.setdefault("front", Front(wait_s=0))
    return RoutingTable(generation=generation, routes=(route,), **more)  # type: ignore[arg-type]


@dataclass
class Running:
    """:ivar routes: the table that the gateway follows. :ivar http: a client of its own."""

    base: str
    routes: Path
    http: aiohttp.ClientSession

    async def post(self, body: object, path: str = CHAT) -> tuple[int, bytes, dict[str, str]]:
        async with self.http.post(self.base + path, json=body) as answer:
            return answer.status, await answer.read(), dict(answer.headers)

    async def metric(self, line: str) -> float:
        """The value of the exposition's line that begins so, 0 when there is none."""
        async with self.http.get(self.base + "/metrics") as answer:
            text = await answer.text()
        found = [row for row in text.splitlines() if row.startswith(line + " ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


@asynccontextmanager
async def gateway(
    folder: Path,
    table: RoutingTable | None,
    *,
    deadlines: Deadlines | None = None,
    drain_s: float = 0.5,
    host: str = "127.0.0.1",
    **more: Any,
) -> AsyncIterator[Running]:
    """:param host: where it listens; "" for all addresses. :param more: of `GatewayOptions`."""
    routes = folder / "routes.json"
    if table is not None:
        write_table(routes, table)
    options = GatewayOptions(
        routes, drain_s, deadlines or Deadlines(), process_metrics=False, **more
    )
    sockets = open_sockets([Address(host, 0)])[:1]
    base = f"http://{host or '127.0.0.1'}:{sockets[0].getsockname()[1]}"
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        running(options, sockets),
        aiohttp.ClientSession(timeout=timeout, connector=connector) as http,
    ):
        yield Running(base, routes, http)


async def until(
    condition: Callable[[], Awaitable[bool]] | Callable[[], bool],
    deadline_s: float = DEADLINE_S,
    *,
    pause_s: float = 0.005,
) -> float:
    """Seconds until the condition held. :raises AssertionError: it never did."""
    start = time.monotonic()
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return time.monotonic() - start
        assert time.monotonic() - start < deadline_s, "the condition did not come true in time"
        await asyncio.sleep(pause_s)
