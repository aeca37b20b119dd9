"""The round trip of a TCP handshake with a peer's door, for machines that forbid pings.

The kernel at the other end answers, not the process, and ours measures it (tcp(7), TCP_INFO).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Hashable

from meshd.rtt.endpoint import version_of
from meshd.rtt.ping import DEADLINE_S

_MAX_PENDING = 64
# struct tcp_info of linux/tcp.h: tcpi_rtt, u32 in microseconds, after 8 bytes and 15 u32.
_RTT = struct.Struct("=I")
_RTT_OFFSET = 68


class Knocker:
    """Like a `Pinger`, by connections that are closed as soon as they are there.

    :param on_answer: called in the loop with the probe's key and the round trip in ms.
    :param on_silence: with the key of one that was refused or not answered in time.
    """

    def __init__(
        self,
        on_answer: Callable[[Hashable, float], None],
        on_silence: Callable[[Hashable], None],
    ) -> None:
        self._on_answer = on_answer
        self._on_silence = on_silence
        self._pending: set[asyncio.Task[None]] = set()

    def send(self, key: Hashable, ip: str, port: int) -> bool:
        """One handshake. False when there are too many under way."""
        if len(self._pending) >= _MAX_PENDING:
            return False
        task = asyncio.create_task(self._knock(key, ip, port), name="rtt knock")
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return True

    def close(self) -> None:
        for task in self._pending:
            task.cancel()

    async def _knock(self, key: Hashable, ip: str, port: int) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                rtt_ms = await _handshake_ms(ip, port)
        except (OSError, TimeoutError):
            self._on_silence(key)
        else:
            self._on_answer(key, rtt_ms)


async def _handshake_ms(ip: str, port: int) -> float:
    """:raises OSError: nobody listens there, or there is no way."""
    family = socket.AF_INET6 if version_of(ip) == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (ip, port))
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_OFFSET + _RTT.size)
        (rtt_us,) = _RTT.unpack_from(info, _RTT_OFFSET)
        return float(rtt_us) / 1000
