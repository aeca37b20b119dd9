"""How a connection is made: to an engine's Unix socket, or over TLS to another node's door."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from aiohappyeyeballs import start_connection

from meshd.gateway.engine_http.connection import Connection
from meshd.gateway.patient_socket import factory

_FIRST_DELAY_S = 0.001
_LAST_DELAY_S = 0.032
# RFC 8305, section 8: before the next address of a name is tried as well.
_NEXT_ADDRESS_S = 0.25

Make = Callable[[], Connection]


async def dial_unix(path: str, make: Make) -> Connection:
    """The caller sets the deadline. :raises OSError: nobody listens there."""
    connection = await _connected(path)
    try:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_unix_connection(make, sock=connection)
    except BaseException:
        connection.close()
        raise
    return protocol


async def _connected(path: str) -> socket.socket:
    """A Unix socket whose backlog is full answers EAGAIN (connect(2), unix(7)).

    asyncio and uvloop take that for a connection in progress and hand out a socket that is
    connected to nothing. llama-server's backlog is 5, so any burst of requests meets this.
    """
    delay_s = _FIRST_DELAY_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(path)  # at once, one way or the other
        except BlockingIOError:
            connection.close()
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LAST_DELAY_S)
        except BaseException:
            connection.close()
            raise
        else:
            return connection


async def dial_tls(
    address: str, context: ssl.SSLContext, server_name: str, patience_ms: int, make: Make
) -> Connection:
    """The caller sets the deadline.

    :param address: ``host:port``, with brackets around an IPv6 address.
    :param server_name: that the other end's certificate must have.
    :param patience_ms: how long a packet may go unanswered.

    :raises OSError: nobody listens there, or it is not who it should be.
    :raises ValueError: it is no address.
    """
    host, _, port = address.rpartition(":")
    found = await _addresses(host.removeprefix("[").removesuffix("]"), int(port))
    connection = await start_connection(
        found, happy_eyeballs_delay=_NEXT_ADDRESS_S, socket_factory=factory(patience_ms)
    )
    try:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(
            make, sock=connection, ssl=context, server_hostname=server_name
        )
    except BaseException:
        connection.close()
        raise
    return protocol


async def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    if not 0 < port <= 65535:
        raise ValueError(f"no port: {port}")
    try:
        # Asks nobody, so it need not wait for a thread.
        return [
            *socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        ]
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        return [*await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
