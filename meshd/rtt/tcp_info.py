"""What the kernel has measured on TCP connections that exist anyway: sock_diag(7), tcp_info.

Any user may ask. Only connections to the given ports are looked at, and filtered by the kernel.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Any

from meshd.rtt.aside import Aside
from meshd.rtt.endpoint import usable_ip
from meshd.rtt.reading import Reading

_DEADLINE_S = 2.0
_MAX_PORTS = 8
_MAX_READINGS = 1024
_INET_DIAG_INFO = 2  # linux/inet_diag.h; the request's bit mask counts from 1
_NO_MINIMUM_US = 0xFFFFFFFF


class TcpInfo:
    """Reads on a thread, one reading at a time."""

    def __init__(self) -> None:
        self._aside = Aside("tcp_info", _DEADLINE_S)

    async def read(self, ports: Collection[int]) -> tuple[Reading, ...]:
        """Connections to these remote ports, at most eight of them.

        :raises TimeoutError: the kernel did not answer in time.
        :raises OSError: it refused.
        """
        some = sorted(ports)[:_MAX_PORTS]
        return await self._aside.call(lambda: read(some))


def read(ports: Collection[int]) -> tuple[Reading, ...]:
    """Blocks. :raises OSError: no such socket may be opened, or the kernel refused."""
    # Takes 0.4 s of processor time: on this thread, and only in a process that looks.
    from pyroute2.netlink.diag import (  # type: ignore[import-untyped]
        SS_ESTABLISHED,
        DiagSocket,
    )
    from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

    try:
        with DiagSocket() as diag:
            return _read(diag, ports, 1 << SS_ESTABLISHED)
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error


def _read(diag: Any, ports: Collection[int], states: int) -> tuple[Reading, ...]:
    found: list[Reading] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for port in ports:
            messages = diag.get_sock_stats(
                family=family,
                states=states,
                extensions=1 << (_INET_DIAG_INFO - 1),
                dport=port,
            )
            readings = (reading(message) for message in messages)
            found += [one for one in readings if one is not None]
            if len(found) >= _MAX_READINGS:
                return tuple(found[:_MAX_READINGS])
    return tuple(found)


def reading(message: Any) -> Reading | None:
    """From pyroute2's `inet_diag_msg`; None for one without a measurement."""
    info = message.get_attr("INET_DIAG_INFO")
    try:
        ip = usable_ip(message["idiag_dst"])
    except (ValueError, TypeError):
        return None
    if info is None or not ip or not info["tcpi_rtt"]:
        return None
    minimum_us = info.get("tcpi_min_rtt") or _NO_MINIMUM_US
    return Reading(
        ip=ip,
        port=message["idiag_dport"],
        cookie=message["idiag_cookie"],
        rtt_ms=info["tcpi_rtt"] / 1000,
        min_ms=None if minimum_us == _NO_MINIMUM_US else minimum_us / 1000,
        segments=info.get("tcpi_segs_in") or 0,
    )
