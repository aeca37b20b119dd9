"""The client of engines on real sockets, with asyncio's event loop and with the gateway's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from meshd.gateway.engine_call import Door, EngineFailed, call, status_of
from meshd.gateway.engine_http.answer import AnswerBroken
from meshd.gateway.engine_http.connection import HELD_BYTES, Connection
from meshd.gateway.engine_http.dial import Make, dial_tls, dial_unix
from meshd.gateway.engine_http.pool import Pool
from meshd.mesh.tls import client_context, server_context, server_name
from tests.wire.gateway_harness import SSE_HEAD, Call, answering, engine, plain, until
from tests.wire.mesh_harness import member

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    loop = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def running(work: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(work)

    return running


@contextmanager
def door(path: Path, *, connect_s: float = 2.0, keep_s: float = 3.0) -> Iterator[Door]:
    def dial(make: Make) -> Awaitable[Connection]:
        return dial_unix(str(path), make)

    pool = Pool(dial, connect_s, keep_s)
    try:
        yield Door(pool, "engine")
    finally:
        pool.close()


async def ask(to: Door, body: bytes = b"{}") -> bytes:
    answer = await call(to, "/v1/x", body, {"Accept": "*/*"})
    pieces = []
    while piece := await answer.piece():
        pieces.append(piece)
    answer.close()
    return b"".join(pieces)


def test_a_connection_is_kept_for_a_while(tmp_path: Path, run: Run) -> None:
    async def work() -> None:
        path = tmp_path / "e.sock"
        async with engine(path, answering()) as scripted:
            with door(path, keep_s=0.2) as to:
                for _ in range(3):
                    assert await ask(to) == b'{"said":"pong"}'
                assert len({id(one.writer) for one in scripted.calls}) == 1
                assert to.pool.idle == 1
                await until(lambda: to.pool.idle == 0)
                await until(scripted.calls[0].writer.is_closing)
                assert await ask(to) == b'{"said":"pong"}'
                assert len({id(one.writer) for one in scripted.calls}) == 2

    run(work())


def test_a_connection_that_the_engine_closed_is_not_used_again(tmp_path: Path, run: Run) -> None:
    async def script(one: Call) -> None:
        await one.send(plain("200 OK", b"{}"))
        one.writer.close()

    async def work() -> None:
        path = tmp_path / "e.sock"
        async with engine(path, script) as scripted:
            with door(path) as to:
                for number in range(1, 6):
                    assert await ask(to) == b"{}"
                    assert len(scripted.calls) == number, "each arrived once"

    run(work())


def test_one_that_breaks_as_it_is_used_again_is_replaced_once(tmp_path: Path, run: Run) -> None:
    async def script(one: Call) -> None:
        if one.nth in (2, 3):
            one.reset()
        else:
            await one.send(plain("200 OK", b"{}"))

    async def work() -> None:
        path = tmp_path / "e.sock"
        async with engine(path, script) as scripted:
            with door(path) as to:
                assert await ask(to) == b"{}"
                with pytest.raises(EngineFailed) as failed:
                    await ask(to)
                assert (failed.value.kind, failed.value.lost) == ("reset", True)
                assert len(scripted.calls) == 3

    run(work())


@pytest.mark.parametrize("size", [0, 1000, 65536, 65537, 400_000, 20_000_000])
def test_a_body_of_any_size_arrives(tmp_path: Path, run: Run, size: int) -> None:
    async def work() -> None:
        path, body = tmp_path / "e.sock", (bytes(range(251)) * (size // 251 + 1))[:size]
        async with engine(path, answering()) as scripted:
            with door(path) as to:
                for _ in range(2):
                    assert await ask(to, body) == b'{"said":"pong"}'
                assert all(one.body == body for one in scripted.calls)
                assert len({id(one.writer) for one in scripted.calls}) == 1

    run(work())


def test_a_slow_reader_cannot_grow_memory(tmp_path: Path, run: Run) -> None:
    sent = 0

    async def script(one: Call) -> None:
        nonlocal sent
        block = b"z" * 65536
        await one.send(SSE_HEAD)
        while True:
            await one.send(b"%x\r\n%s\r\n" % (len(block), block))
            sent += len(block)

    async def work() -> None:
        path = tmp_path / "e.sock"
        async with engine(path, script):
            with door(path) as to:
                answer = await call(to, "/v1/x", b"{}", {})
                seen = -1

                async def stands() -> bool:
                    nonlocal seen
                    before, seen = seen, sent
                    return before == sent

                await until(stands, pause_s=0.1)
                # What one read brings, and what the kernel and the other end hold.
                first = await answer.piece()
                assert len(first) < HELD_BYTES + 512 * 1024
                assert sent < 4 * 1024 * 1024
                stood = sent
                while sent < stood + 10 * 1024 * 1024:
                    assert len(await answer.piece()) < HELD_BYTES + 512 * 1024
                answer.close()

    run(work())


def test_leaving_an_answer_hangs_up_at_once(tmp_path: Path, run: Run) -> None:
    async def script(one: Call) -> None:
        await one.send(SSE_HEAD)
        await one.hung_up()

    async def work() -> None:
        path = tmp_path / "e.sock"
        async with engine(path, script) as scripted:
            with door(path) as to:
                answer = await call(to, "/v1/x", b"{}", {})
                answer.close()
                await until(scripted.calls[0].writer.is_closing)
                assert to.pool.idle == 0

    run(work())


def test_a_full_backlog_is_waited_for_and_no_longer_than_that(tmp_path: Path, run: Run) -> None:
    async def work() -> None:
        path = tmp_path / "e.sock"
        with socket.socket(socket.AF_UNIX) as listener, door(path, connect_s=0.3) as to:
            listener.bind(str(path))
            listener.listen(1)
            waiting = []
            for _ in range(2):
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].connect(str(path))
            with pytest.raises(EngineFailed) as failed:
                await ask(to)
            assert failed.value.kind == "connect_timeout"
            asking = asyncio.create_task(ask(to))
            listener.setblocking(False)
            loop = asyncio.get_running_loop()
            for one in waiting:
                accepted, _ = listener.accept()
                accepted.close()
                one.close()
            accepted, _ = await asyncio.wait_for(loop.sock_accept(listener), 5)
            with accepted:
                await asyncio.wait_for(loop.sock_recv(accepted, 65536), 5)
                await loop.sock_sendall(accepted, plain("200 OK", b"{}"))
                assert await asyncio.wait_for(asking, 5) == b"{}"

    run(work())


def test_nobody_there_is_refused(tmp_path: Path, run: Run) -> None:
    async def work() -> None:
        for path in (tmp_path / "none.sock", tmp_path / ("x" * 200)):
            with door(path) as to:
                with pytest.raises(EngineFailed) as failed:
                    await ask(to)
                assert (failed.value.kind, failed.value.lost) == ("refused", False)
                with pytest.raises(EngineFailed):
                    await status_of(to, "/health")

    run(work())


def test_a_probe_has_a_connection_of_its_own(tmp_path: Path, run: Run) -> None:
    async def work() -> None:
        path = tmp_path / "e.sock"
        async with engine(path, answering()) as scripted:
            with door(path) as to:
                await ask(to)
                assert await status_of(to, "/health") == 200
                scripted.healthy = False
                assert await status_of(to, "/health") == 503

    run(work())


@asynccontextmanager
async def far(
    folder: Path, script: Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]
) -> AsyncIterator[tuple[str, str, str]]:
    """Another node's door: its address, id and mesh."""
    who = member(folder, "far")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.lower().splitlines()
                    if line.startswith(b"content-length")
                )
                await script(writer, await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    context = server_context(who.tls)
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context, limit=1 << 20)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"127.0.0.1:{port}", who.id, who.mesh
    finally:
        server.close()


def tls_door(folder: Path, address: str, name: str) -> Door:
    context = client_context(member(folder, "near").tls)

    def dial(make: Make) -> Awaitable[Connection]:
        return dial_tls(address, context, name, 1000, make)

    return Door(Pool(dial, 2.0, 3.0), address, remote=True)


async def _echo(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(plain("200 OK", body))
    await writer.drain()


def test_over_tls_bodies_of_all_sizes_go_both_ways(tmp_path: Path, run: Run) -> None:
    async def work() -> None:
        async with far(tmp_path, _echo) as (address, node, mesh):
            to = tls_door(tmp_path, address, server_name(node, mesh))
            for size in (2, 400_000, 5_000_000):
                body = (bytes(range(251)) * (size // 251 + 1))[:size]
                assert await ask(to, body) == body
                assert to.pool.idle == 1
            to.pool.close()

    run(work())


def test_another_node_at_that_address_gets_nothing(tmp_path: Path, run: Run) -> None:
    async def work() -> None:
        heard: list[bytes] = []

        async def script(writer: asyncio.StreamWriter, body: bytes) -> None:
            heard.append(body)
            await _echo(writer, body)

        async with far(tmp_path, script) as (address, _, mesh):
            other = member(tmp_path, "other")
            to = tls_door(tmp_path, address, server_name(other.id, mesh))
            with pytest.raises(EngineFailed) as failed:
                await ask(to)
            assert (failed.value.kind, failed.value.lost) == ("refused", False)
            assert heard == []

    run(work())


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:1", "[::1]:1", "no.invalid:80"])
def test_an_address_where_nobody_is_is_refused(tmp_path: Path, run: Run, address: str) -> None:
    async def work() -> None:
        to = tls_door(tmp_path, address, "x.y")
        with pytest.raises(EngineFailed) as failed:
            await ask(to)
        assert failed.value.kind in ("refused", "connect_timeout")
        assert not failed.value.lost

    run(work())


def test_a_stream_over_tls_that_is_cut_is_broken(tmp_path: Path, run: Run) -> None:
    async def script(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(SSE_HEAD + b"5\r\nhello\r\n")
        await writer.drain()
        writer.transport.abort()

    async def work() -> None:
        async with far(tmp_path, script) as (address, node, mesh):
            to = tls_door(tmp_path, address, server_name(node, mesh))
            answer = await call(to, "/v1/x", b"{}", {})
            assert await answer.piece() == b"hello"
            with pytest.raises(AnswerBroken):
                await answer.piece()
            to.pool.close()

    run(work())
