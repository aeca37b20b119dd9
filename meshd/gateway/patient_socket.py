"""TCP sockets that notice within a second or two that the other machine has fallen silent.

Without this a cut link shows only after some 15 minutes of retransmissions (tcp(7),
tcp_retries2). TCP_USER_TIMEOUT (RFC 5482) bounds how long sent data may stay unacknowledged, and
with keepalive also how long an idle connection's probes may.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

_AddressInfo = tuple[int, int, int, str, Any]


def set_patience(connection: socket.socket, patience_ms: int, *, idle_s: int = 1) -> None:
    """:param patience_ms: how long a packet may go unanswered.

    :param idle_s: seconds without a packet after which the other end is asked for one.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, patience_ms // 2000))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)


def factory(patience_ms: int) -> Callable[[_AddressInfo], socket.socket]:
    """What makes aiohttp's outgoing sockets."""

    def make(info: _AddressInfo) -> socket.socket:
        family, kind, protocol, _, _ = info
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            set_patience(connection, patience_ms)
        except BaseException:
            connection.close()
            raise
        return connection

    return make
