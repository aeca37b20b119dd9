"""Clients that read nothing cost the gateway little memory, whatever their engines would send."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from meshd.gateway.table_file import write_table
from tests.wire.gateway_harness import (
    CHAT,
    SSE_HEAD,
    Call,
    chunk,
    engine,
    event,
    table_of,
    until,
)

REPOSITORY = Path(__file__).resolve().parents[2]
STREAMS = 100
# Of each stream: what waits for its client, and the text so far, for whoever may have to go on.
MOST_BYTES = 1024 * 1024
STILL_S = 1.0


@asynccontextmanager
async def _gateway(folder: Path) -> AsyncIterator[tuple[int, int]]:
    """:returns: its port and its process's id."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "meshd.cli.main", "gateway",
        "--routes", str(folder / "routes.json"), "--listen", f"127.0.0.1:{port}",
        cwd=REPOSITORY, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as http:

            async def up() -> bool:
                try:
                    async with http.get(f"http://127.0.0.1:{port}/healthz") as answer:
                        return answer.status == 200
                except aiohttp.ClientConnectionError:
                    return False

            await until(up, 20)
        yield port, process.pid
    finally:
        process.kill()
        await process.wait()


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _client(port: int, stack: ExitStack) -> None:
    """Asks for a stream, and then never reads."""
    body = json.dumps({"model": "m", "stream": True}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    client = stack.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(head.encode() + body)


@pytest.mark.parametrize("size_bytes", [64, 4096])
async def test_streams_that_nobody_reads_take_little_memory(
    tmp_path: Path, size_bytes: int
) -> None:
    path = tmp_path / "e.sock"
    sent_bytes, begun = 0, 0
    piece = chunk(event("z" * size_bytes) * (1 + 16384 // size_bytes))

    async def script(call: Call) -> None:
        nonlocal sent_bytes, begun
        begun += 1
        await call.send(SSE_HEAD)
        while True:
            await call.send(piece)
            sent_bytes += len(piece)

    table = table_of(path, slots=STREAMS)
    [route] = table.routes
    targets = tuple(replace(one, weights="w") for one in route.targets)
    write_table(tmp_path / "routes.json", replace(table, routes=(replace(route, targets=targets),)))
    with ExitStack() as stack:
        async with engine(path, script, backlog=STREAMS), _gateway(tmp_path) as (port, pid):
            before_bytes = _resident_bytes(pid)
            for _ in range(STREAMS):
                _client(port, stack)
            last, since = -1, time.monotonic()

            def stuck() -> bool:
                nonlocal last, since
                if sent_bytes != last:
                    last, since = sent_bytes, time.monotonic()
                return begun == STREAMS and time.monotonic() - since > STILL_S

            await until(stuck, 60)
            each = (_resident_bytes(pid) - before_bytes) / STREAMS
            print(f"{each / 1024:.0f} KiB a stream, {sent_bytes / STREAMS / 1024:.0f} KiB sent")
            assert each < MOST_BYTES
            # The rest is the kernel's, which takes 3.4 MiB a stream if it is let.
            assert sent_bytes / STREAMS < 2 * MOST_BYTES
