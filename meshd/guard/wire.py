"""A TCP or TLS connection on the event loop, without a transport: its socket can be handed on.

Every call is to be bounded by the caller (`asyncio.timeout`).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from contextlib import suppress

from meshd.gateway.listen import Address
from meshd.guard.greeting import LINE_BYTES

# Of an idle connection; the control channel notices a silent peer sooner.
_KEEPALIVE_S, _KEEPALIVES = 5, 3
_RESET = struct.pack("ii", 1, 0)


class Wire:
    """:ivar socket: non-blocking; nothing of it is buffered here but what `line` read too much."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._read = bytearray()

    async def handshake(self) -> None:
        """:raises ssl.SSLError, OSError: the other end is none of ours, or went away."""
        assert isinstance(self.socket, ssl.SSLSocket)
        while True:
            try:
                self.socket.do_handshake()
            except ssl.SSLWantReadError:
                await _ready(self.socket, write=False)
            except ssl.SSLWantWriteError:
                await _ready(self.socket, write=True)
            else:
                return

    async def read(self, most: int) -> bytes:
        """What is there, b"" at the end.

        :raises OSError: the connection broke.
        """
        if self._read:
            data = bytes(self._read[:most])
            del self._read[:most]
            return data
        while True:
            try:
                return self.socket.recv(most)
            except (BlockingIOError, ssl.SSLWantReadError):
                await _ready(self.socket, write=False)

    async def exactly(self, count: int) -> bytes:
        """:raises EOFError: it ended before. :raises OSError: it broke."""
        data = bytearray()
        while len(data) < count:
            more = await self.read(count - len(data))
            if not more:
                raise EOFError("the connection ended")
            data += more
        return bytes(data)

    async def line(self) -> bytes:
        """Without its end.

        :raises EOFError: it ended before. :raises ValueError: too long. :raises OSError: it broke.
        """
        data = bytearray()
        while (at := data.find(b"\n")) < 0:
            if len(data) > LINE_BYTES:
                raise ValueError(f"a line of more than {LINE_BYTES} bytes")
            more = await self.read(LINE_BYTES)
            if not more:
                raise EOFError("the connection ended")
            data += more
        self._read = data[at + 1 :] + self._read
        return bytes(data[:at])

    async def write(self, data: bytes) -> None:
        """:raises OSError: the connection broke."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await _ready(self.socket, write=True)

    def rest(self) -> bytes:
        """What was read too much; it is the caller's now."""
        rest = bytes(self._read)
        self._read.clear()
        return rest

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close at once; the other end's next call fails."""
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()


async def connect(address: Address) -> Wire:
    """:raises OSError: nobody answers there."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    trouble: OSError = OSError(f"{address.host} has no address")
    for family, kind, protocol, _, place in found:
        connection = socket.socket(family, kind, protocol)
        try:
            _prepare(connection)
            await loop.sock_connect(connection, place)
        except OSError as error:
            connection.close()
            trouble = error
        except BaseException:
            connection.close()
            raise
        else:
            return Wire(connection)
    raise trouble


async def accept(listener: socket.socket) -> socket.socket:
    """The next connection, non-blocking. :raises OSError: of the listener."""
    loop = asyncio.get_running_loop()
    connection, _ = await loop.sock_accept(listener)
    try:
        _prepare(connection)
    except OSError:
        connection.close()
        raise
    return connection


def address_of(connection: socket.socket) -> str:
    """Of the other end, without its port; "" when it is gone already."""
    try:
        return str(connection.getpeername()[0])
    except OSError:
        return ""


def encrypt(connection: socket.socket, context: ssl.SSLContext, name: str | None) -> Wire:
    """The same socket with TLS, before its handshake. :param name: of the server, for a client."""
    return Wire(
        context.wrap_socket(
            connection,
            server_side=name is None,
            server_hostname=name,
            do_handshake_on_connect=False,
        )
    )


def _prepare(connection: socket.socket) -> None:
    """No TCP_USER_TIMEOUT: it would also end a connection whose other end takes nothing for a
    while (tcp(7)), and an rpc-server takes nothing while it computes.
    """
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVES)


async def _ready(connection: socket.socket, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )
    descriptor = connection.fileno()
    if descriptor < 0:
        raise OSError("the connection was closed")

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    add(descriptor, wake)
    try:
        await future
    finally:
        remove(descriptor)
