"""The door for other nodes: TLS, for members of this mesh only, on sockets that somebody holds."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import cast

import structlog
from aiohttp import web

from meshd.gateway.patient_socket import set_patience
from meshd.mesh.tls import peer_node_id

_log = structlog.get_logger("meshd.gateway")

_HANDSHAKE_S = 5.0
_GOODBYE_S = 1.0
_BACKLOG = 1024
# Of the other end: a laptop that was shut is forgotten after so long. Not shorter, since the
# comments of a stream ask just as well, and idle clients should cost nothing.
_PATIENCE_MS = 30_000
_IDLE_S = 60


def member_of(transport: asyncio.BaseTransport | None) -> str:
    """The id of the node at the other end, "" when it cannot be told."""
    tls = transport.get_extra_info("ssl_object") if transport is not None else None
    if tls is None:
        return ""
    try:
        return peer_node_id(tls)
    except ValueError:
        return ""


class PeerDoor:
    """Open while there is a certificate; each other one replaces it for the next connection."""

    def __init__(self, runner: web.AppRunner, listeners: Sequence[socket.socket]) -> None:
        """:param runner: set up; its connections are all from here. :param listeners: stay open."""
        self._runner = runner
        self._listeners = listeners
        self._servers: list[asyncio.Server] = []
        self._revoked: frozenset[str] = frozenset()
        for listener in listeners:
            set_patience(listener, _PATIENCE_MS, idle_s=_IDLE_S)

    @property
    def open(self) -> bool:
        return bool(self._servers)

    async def show(self, certificate: ssl.SSLContext | None) -> None:
        """Serve with this certificate; without one, serve nobody. Connections live on."""
        self._close()
        if certificate is None:
            if self._runner.server is not None:
                for connection in self._runner.server.connections:
                    _cut(connection)
            return
        assert self._runner.server is not None
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            # A server closes its socket with itself; the one that we were given has to stay.
            self._servers.append(
                await loop.create_server(
                    self._runner.server,
                    sock=listener.dup(),
                    ssl=certificate,
                    backlog=_BACKLOG,
                    ssl_handshake_timeout=_HANDSHAKE_S,
                    ssl_shutdown_timeout=_GOODBYE_S,
                )
            )
        _log.info("peer door open", sockets=len(self._servers))

    def cut(self, revoked: Collection[str]) -> None:
        """End the connections of these nodes, whatever runs on them."""
        before, self._revoked = self._revoked, frozenset(revoked)
        if self._revoked <= before or self._runner.server is None:
            return
        for connection in self._runner.server.connections:
            member = member_of(connection.transport)
            if member in revoked:
                _log.warning("connection of a revoked node ended", node=member)
                _cut(connection)

    def close(self) -> None:
        """Let nobody in any more; who is in may stay."""
        self._close()

    def _close(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()


def _cut(connection: web.RequestHandler) -> None:
    # Not asked with isinstance: uvloop's transports have another base.
    transport = cast(asyncio.WriteTransport | None, connection.transport)
    if transport is not None:
        with suppress(OSError):
            transport.abort()
