"""A peer that keeps a member waiting by saying a little now and then, or by saying too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from meshd.mesh.peer_http import SourceError
from meshd.mesh.tls import server_context
from meshd.seeding.peer_source import PeerSource
from tests.wire.mesh_harness import Member, member

CONTENT = "0" * 16
HEAD = (
    b"HTTP/1.1 206 Partial Content\r\nX-Mesh-Parts: 1\r\n"
    b"Content-Range: bytes 0-%d/1000000\r\nContent-Length: %d\r\n\r\n"
)


@asynccontextmanager
async def peer(who: Member, *pieces: bytes, drip: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """Says `pieces` to each request, then `drip` for ever; and how many connections it had."""
    connections: list[int] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        connections.append(1)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                for piece in pieces:
                    writer.write(piece)
                await writer.drain()
                while drip:
                    writer.write(drip)
                    await writer.drain()
                    await asyncio.sleep(0.02)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(who.tls))
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        # Transports that were aborted close in the loop's next turn.
        await asyncio.sleep(0)


def everything(source: PeerSource, size_bytes: int) -> bytes:
    try:
        return b"".join(source.read(CONTENT, 0, 0, size_bytes))
    finally:
        source.close()


async def test_a_drip_of_weights_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.mesh.peer_http.GRACE_S", 0.2)
    me, other = member(tmp_path, "me"), member(tmp_path, "other")
    async with peer(other, HEAD % (99_999, 100_000), drip=b"x") as (address, _):
        source = PeerSource(other.id, address, me.tls)
        async with asyncio.timeout(10):
            with pytest.raises(SourceError, match="slower than"):
                await asyncio.to_thread(everything, source, 100_000)


async def test_a_drip_of_headers_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.mesh.peer_http.BEGIN_S", 0.3)
    me, other = member(tmp_path, "me"), member(tmp_path, "other")
    async with peer(other, b"HTTP/1.1 206 Partial Content\r\nX: ", drip=b"x") as (address, _):
        source = PeerSource(other.id, address, me.tls)
        async with asyncio.timeout(10):
            with pytest.raises(SourceError):
                await asyncio.to_thread(everything, source, 100)


async def test_more_than_was_asked_for_is_not_read(tmp_path: Path) -> None:
    me, other = member(tmp_path, "me"), member(tmp_path, "other")
    async with peer(other, HEAD % (10**12, 10**12), drip=b"x" * 10_000) as (address, _):
        source = PeerSource(other.id, address, me.tls)
        async with asyncio.timeout(10):
            with pytest.raises(SourceError, match="another range"):
                await asyncio.to_thread(source.headers, CONTENT)
        source.close()


async def test_one_connection_serves_all_ranges(tmp_path: Path) -> None:
    me, other = member(tmp_path, "me"), member(tmp_path, "other")
    async with peer(other, HEAD % (4, 5), b"abcde", drip=b"") as (address, connections):
        source = PeerSource(other.id, address, me.tls)
        for _ in range(3):
            ranges = source.read(CONTENT, 0, 0, 5)
            assert await asyncio.to_thread(b"".join, ranges) == b"abcde"
        source.close()
    assert len(connections) == 1
