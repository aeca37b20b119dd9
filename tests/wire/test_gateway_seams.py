"""What a client has of a stream when it breaks or stops: nothing twice, nothing lost, nothing more
after its end; whatever the client was doing at that moment.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from meshd.gateway.table_file import write_table
from tests.wire.gateway_harness import (
    CHAT,
    CHUNKED_END,
    DONE,
    SSE_HEAD,
    Call,
    Running,
    Script,
    chunk,
    engine,
    event,
    gateway,
    until,
)
from tests.wire.mesh_harness import node, table

_ASK = {
    "model": "m",
    "stream": True,
    "temperature": 0,
    "messages": [{"role": "user", "content": "count"}],
}
# More than all buffers between an engine and a client that does not read.
_EVENTS = 1500


def _routes(*targets: Target, generation: int = 1) -> RoutingTable:
    routes = (Route("m", ModelState.READY, targets),)
    return RoutingTable(generation=generation, routes=routes, front=Front(wait_s=30))


def _target(path: Path, weights: str = "w", *, ready: bool = True) -> Target:
    return Target("local", str(path), ready, 4, weights=weights)


def _numbered(number: int) -> bytes:
    """A short text in a large event, as log probabilities make it."""
    words = {"choices": [{"index": 0, "delta": {"content": f"<{number}>"}}], "more": "x" * 8000}
    return b"data: " + json.dumps(words).encode() + b"\n\n"


async def _counts(call: Call) -> None:
    await call.send(SSE_HEAD)
    for number in range(_EVENTS):
        await call.send(chunk(_numbered(number)))
    await call.send(chunk(DONE) + CHUNKED_END)


@asynccontextmanager
async def _reader(running: Running) -> AsyncIterator[socket.socket]:
    """A client that has asked and does not read yet."""
    loop = asyncio.get_running_loop()
    host, port = running.base.removeprefix("http://").rsplit(":", 1)
    body = json.dumps(_ASK).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, (host, int(port)))
        await loop.sock_sendall(client, head.encode() + body)
        yield client


async def _rest(client: socket.socket) -> bytes:
    """All that comes, up to the end of the last chunk or of the connection."""
    got = bytearray()
    async with asyncio.timeout(30):
        while not got.endswith(b"\r\n0\r\n\r\n"):
            piece = await asyncio.get_running_loop().sock_recv(client, 1 << 20)
            if not piece:
                break
            got += piece
    return bytes(got)


async def _stuck(calls: Sequence[Call]) -> None:
    """Until an engine cannot get rid of anything more, since the client does not read."""
    await until(lambda: len(calls) == 1)
    said = -1

    async def no_more() -> bool:
        nonlocal said
        before, said = said, calls[0].writer.transport.get_write_buffer_size()
        return said == before > 0

    await until(no_more, pause_s=0.2)


async def test_what_a_slow_reader_was_sent_is_not_sent_again_by_the_next_engine(
    tmp_path: Path,
) -> None:
    one, two = tmp_path / "1.sock", tmp_path / "2.sock"
    first = _routes(_target(one), _target(two, ready=False))
    leaves = _routes(_target(one, ready=False), _target(two), generation=2)
    async with (
        engine(one, _counts) as left,
        engine(two, _counts) as right,
        gateway(tmp_path, first) as running,
        _reader(running) as client,
    ):
        await _stuck(left.calls)

        async def given_up() -> bool:
            # A stream that flowed a moment ago is left alone, whatever the table says.
            nonlocal leaves
            leaves = replace(leaves, generation=leaves.generation + 1)
            await asyncio.to_thread(write_table, running.routes, leaves)
            return bool(right.calls)

        await until(given_up, pause_s=0.3)
        got = await _rest(client)
        assert got.endswith(b"\r\n0\r\n\r\n")
        assert got.count(DONE) == 1
        said = [int(number) for number in re.findall(rb'"<(\d+)>"', got)]
        assert said == list(range(_EVENTS))


async def test_a_slow_reader_learns_that_the_gateway_stops(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with AsyncExitStack() as stack:
        counting = await stack.enter_async_context(engine(path, _counts))
        async with AsyncExitStack() as life:
            running = await life.enter_async_context(
                gateway(tmp_path, _routes(_target(path)), drain_s=0)
            )
            client = await stack.enter_async_context(_reader(running))
            await _stuck(counting.calls)
            stopping = asyncio.create_task(life.pop_all().aclose())

        def closed() -> bool:
            # Not asked with a connection, which nobody would take any more.
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    other.bind(client.getpeername())
                except OSError:
                    return False
                return True

        await until(closed)
        got = await _rest(client)
        await stopping
        assert got.endswith(b"\r\n0\r\n\r\n")
        assert b'"code":"stopping"' in got[-1000:]
        assert DONE not in got


@pytest.mark.parametrize("weights", ["", "w"])
async def test_an_engine_that_dies_after_its_last_event_has_answered(
    tmp_path: Path, weights: str
) -> None:
    path, got = tmp_path / "e.sock", asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(event("one")) + chunk(DONE))
        await got.wait()
        call.reset()

    async with (
        engine(path, script),
        gateway(tmp_path, _routes(_target(path, weights))) as running,
        running.http.post(running.base + CHAT, json=_ASK) as answer,
    ):
        received = b""
        while not received.endswith(DONE):
            received += await answer.content.readany()
        got.set()
        assert received + await answer.read() == event("one") + DONE


async def test_a_stream_goes_on_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    """Not with those of an engine that had failed before."""
    far, begins, same = (tmp_path / f"{name}.sock" for name in ("far", "begins", "same"))
    busy = {"error": {"message": "no slot", "type": "server_error", "code": "model_overloaded"}}
    began: list[str] = []

    async def waits_in_vain(call: Call) -> None:
        began.append("far")
        failed = b"data: " + json.dumps(busy).encode() + b"\n\n"
        await call.send(SSE_HEAD + chunk(b": waiting\n\n") + chunk(failed) + CHUNKED_END)

    def half(name: str) -> Script:
        async def script(call: Call) -> None:
            began.append(name)
            await call.send(SSE_HEAD + chunk(event("one")))
            if began.count("begins") + began.count("same") == 1:
                call.reset()
            else:
                await call.send(chunk(event("two")) + chunk(DONE) + CHUNKED_END)

        return script

    async with (
        engine(far, waits_in_vain),
        engine(begins, half("begins"), healthy=False),
        engine(same, half("same"), healthy=False),
        node(tmp_path, "a") as a,
        node(tmp_path, "b") as b,
    ):
        await b.tell(table([b.own(far)], [a, b]))
        own = [
            replace(a.own(path), weights="w2", suspect=True)  # so that the other is asked first
            for path in (begins, same)
        ]
        routes = table([replace(b.seen(), weights="w1"), *own], [a, b])
        await a.tell(replace(routes, front=Front(wait_s=30)))
        async with a.running.http.post(a.running.base + CHAT, json=_ASK) as answer:
            got = await answer.read()
        assert began[0] == "far"
        assert sorted(began) == ["begins", "far", "same"]
        assert b'"one"' in got
        assert b'"two"' in got
        assert got.endswith(DONE)
