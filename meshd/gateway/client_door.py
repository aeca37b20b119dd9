"""The door for clients: counted connections, TLS for those from elsewhere, and patience with none.

Whether a connection is from this machine or from elsewhere is seen when it comes, so that one
socket on all addresses speaks plain HTTP to the first and TLS to the others.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import structlog
from aiohttp import web

from meshd.gateway.client_connection import ClientConnection
from meshd.gateway.client_tls import ClientTls
from meshd.gateway.crowd import Crowd, CrowdLimits, household, limits_for
from meshd.gateway.gate import from_here
from meshd.gateway.patient_socket import set_patience

_LOOK_S = 1.0
_HANDSHAKE_S = 10.0
_GOODBYE_S = 1.0
_BACKLOG = 1024
_MOST_UNSENT_BYTES = 64 * 1024
# Of a client elsewhere that has fallen silent, or does not take what it is sent.
_PATIENCE_MS = 120_000
_ASK_S = 60
# While a handshake ends, its first request may come along; a client that sends more has to wait.
_MAX_EARLY_BYTES = 64 * 1024

_log = structlog.get_logger("meshd.gateway")


class ClientDoor:
    """:ivar crowd: who is in. :ivar slow: clients that were hung up on for a slow head."""

    def __init__(
        self,
        server: web.Server,
        listeners: Sequence[socket.socket],
        tls: ClientTls,
        limits: CrowdLimits | None = None,
        **settings: Any,
    ) -> None:
        """:param listeners: closed with the door. :param settings: of each `ClientConnection`."""
        self.crowd = Crowd(limits or limits_for(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
        self.slow = 0
        self._server = server
        self._listeners = listeners
        self._tls = tls
        self._settings = settings
        self._open: set[ClientConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._handshakes: set[asyncio.Task[None]] = set()
        self._full = False
        made = server.request_factory

        def begun(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> Any:
            if isinstance(protocol, ClientConnection):
                protocol.begun()
            return made(message, payload, protocol, writer, task)

        server.request_factory = begun

    @property
    def addresses(self) -> list[Any]:
        """Where it listens."""
        return [one.getsockname() for server in self._servers for one in server.sockets]

    async def open(self) -> None:
        """Let clients in."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                # Connections inherit it. For a client that reads nothing the kernel would take
                # megabytes; what is on its way to one that reads is not counted.
                unsent = socket.TCP_NOTSENT_LOWAT
                listener.setsockopt(socket.IPPROTO_TCP, unsent, _MOST_UNSENT_BYTES)
            self._servers.append(
                await loop.create_server(
                    lambda: _Doorman(self, loop), sock=listener, backlog=_BACKLOG
                )
            )

    def close(self) -> None:
        """Let nobody in any more; who is in may stay."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in self._handshakes:
            task.cancel()

    async def run(self) -> None:
        """Look after the connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            now_s = loop.time()
            self.slow += sum(connection.look(now_s) for connection in [*self._open])

    def meet(self, transport: asyncio.Transport) -> tuple[ClientConnection, str, bool]:
        """A new connection: what serves it, why it may not stay ("" if it may), and whether it is
        from here.
        """
        connection = ClientConnection(self._server, asyncio.get_running_loop(), **self._settings)
        here = from_here(transport)
        address = "" if here else _address(transport)
        if why := self.crowd.enter(address):
            if not self._full:
                _log.warning("no room for a client", reason=why)
            self._full = True
            return connection, why, here
        self._full = False

        def left() -> None:
            connection.left = _gone
            self._open.discard(connection)
            self.crowd.leave(address)

        self._open.add(connection)
        connection.left = left
        if not here:
            _be_patient(transport)
        return connection, "", here

    def secure(self, here: bool) -> ssl.SSLContext | None:
        """The context for a connection, None for plain HTTP.

        :raises ssl.SSLError: TLS is wanted and cannot be had.
        """
        if here or not self._tls.wanted:
            return None
        if self._tls.context is None:
            raise ssl.SSLError(self._tls.error)
        return self._tls.context

    def shake_hands(self, doorman: _Doorman, context: ssl.SSLContext) -> None:
        task = asyncio.create_task(doorman.shake_hands(context))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)


class _Doorman(asyncio.Protocol):
    """Has a connection until it is known how it is served."""

    def __init__(self, door: ClientDoor, loop: asyncio.AbstractEventLoop) -> None:
        self._door = door
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._connection: ClientConnection | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked with isinstance: uvloop's transports have another base.
        transport = cast(asyncio.Transport, transport)
        connection, why, here = self._door.meet(transport)
        try:
            context = self._door.secure(here)
        except ssl.SSLError:
            connection.left()
            transport.abort()
            return
        if why:
            if context is None:
                transport.set_protocol(connection)
                connection.refuse(transport, why)
            else:
                transport.abort()
        elif context is None:
            transport.set_protocol(connection)
            connection.connection_made(transport)
        else:
            transport.pause_reading()
            self._transport, self._connection = transport, connection
            self._door.shake_hands(self, context)

    def data_received(self, data: bytes) -> None:
        self._early.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > _MAX_EARLY_BYTES and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._ended = True
        if self._connection is not None:
            self._connection.left()

    async def shake_hands(self, context: ssl.SSLContext) -> None:
        transport, connection = self._transport, self._connection
        assert transport is not None
        assert connection is not None
        try:
            secured = await self._loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=_HANDSHAKE_S,
                ssl_shutdown_timeout=_GOODBYE_S,
            )
        except (ssl.SSLError, OSError, TimeoutError) as error:
            _log.debug("TLS handshake failed", error=type(error).__name__)
            transport.abort()
            connection.left()
            return
        except asyncio.CancelledError:
            transport.abort()
            connection.left()
            raise
        if self._ended or secured is None:
            transport.abort()
            connection.left()
            return
        secured.set_protocol(connection)
        connection.connection_made(secured)
        for data in self._early:
            connection.data_received(data)


def _gone() -> None:
    """It is counted no more."""


def _address(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return household(str(peer[0])) if isinstance(peer, tuple) else "?"


def _be_patient(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # it is gone already
            set_patience(connection, _PATIENCE_MS, idle_s=_ASK_S)
