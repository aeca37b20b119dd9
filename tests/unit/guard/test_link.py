"""Two real sockets joined: what is held back, who is blamed, and what lies in one TLS record."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshd.guard.allowance import IDLE, Pace
from meshd.guard.conversation import Conversation
from meshd.guard.hello import HELLO_REQUEST
from meshd.guard.link import Link
from meshd.mesh.tls import client_context, server_context
from tests.wire.guard_harness import identity

HELLO_ANSWER = struct.pack("<Q", 28) + bytes([8, 0, 0]) + bytes(25)
DEVICE_COUNT = struct.pack("<BQ", 15, 0)


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(ours, theirs) of a TCP connection, non-blocking."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def conversation() -> Conversation:
    return Conversation((8, 0, 0), Pace(1.0), lambda *_: None, now_s=0.0)


async def exactly(connection: socket.socket, count: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(10):
        while len(data) < count:
            more = await loop.sock_recv(connection, count - len(data))
            assert more, "it ended"
            data += more
    return data


async def test_a_host_that_takes_nothing_is_no_silence_of_the_member() -> None:
    """llama-server stands still in the middle of an answer: rpc-server must not be blamed."""
    loop = asyncio.get_running_loop()
    with pair() as (host, llama), pair() as (member, rpc):
        link = Link(host, member, conversation())
        running = asyncio.create_task(link.run(HELLO_REQUEST))
        await exactly(rpc, len(HELLO_REQUEST))
        await loop.sock_sendall(rpc, HELLO_ANSWER)
        await exactly(llama, len(HELLO_ANSWER))
        await loop.sock_sendall(llama, struct.pack("<BQ", 8, 312) + bytes(312))
        await exactly(rpc, 321)
        assert link.waiting().since_s is not None
        size = 64 * 1024**2
        saying = asyncio.create_task(loop.sock_sendall(rpc, struct.pack("<Q", size) + bytes(size)))
        async with asyncio.timeout(10):
            while link.waiting() != IDLE:
                await asyncio.sleep(0.01)
        assert link.conversation.owed == 1
        await exactly(llama, 8 + size)
        await saying
        link.cut("")
        await running


async def test_what_came_in_one_record_with_the_hello_is_passed_on(tmp_path: Path) -> None:
    """OpenSSL holds the rest of the record, and no event tells of it."""
    host_node, member_node = identity(tmp_path / "host"), identity(tmp_path / "member")
    context = client_context(host_node.tls)
    context.check_hostname = False
    with pair() as (ours, theirs), pair() as (front, rpc):
        theirs.setblocking(True)
        ours.setblocking(True)
        loop = asyncio.get_running_loop()
        server = server_context(member_node.tls)
        accepting = loop.run_in_executor(None, lambda: server.wrap_socket(ours, server_side=True))
        secured = await asyncio.to_thread(context.wrap_socket, theirs)
        host = await accepting
        with host, secured:
            secured.sendall(HELLO_REQUEST + DEVICE_COUNT)
            first = await asyncio.to_thread(host.recv, len(HELLO_REQUEST))
            host.setblocking(False)
            assert isinstance(host, ssl.SSLSocket)
            assert host.pending() == len(DEVICE_COUNT)
            link = Link(host, front, conversation())
            running = asyncio.create_task(link.run(first))
            assert await exactly(rpc, 42) == HELLO_REQUEST + DEVICE_COUNT
            link.cut("")
            await running
