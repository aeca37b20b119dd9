"""Echo requests through unprivileged ping sockets (icmp(7)), IPv4 and IPv6.

The kernel fills in identifier and checksum and hands us only answers to this identifier; a random
token in each packet keeps old and forged ones out.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import structlog

from meshd.rtt.endpoint import version_of

DEADLINE_S = 3.0
_MAX_PENDING = 64
_REOPEN_AFTER_S = 300.0
_READS_AT_ONCE = 32

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_TOKEN_BYTES = 16
_TIMESPEC = struct.Struct("@ll")
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h, not in Python's socket module


@dataclass(frozen=True, slots=True)
class _Family:
    family: int
    protocol: int
    request: int
    reply: int


_FAMILIES = {
    4: _Family(socket.AF_INET, socket.IPPROTO_ICMP, 8, 0),
    6: _Family(socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129),
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Pending:
    key: Hashable
    ip: str
    sequence: int
    sent_s: float


class Pinger:
    """Sends when told to, and tells what came back. Must be opened in a running event loop.

    :ivar forbidden: versions of IP for which this machine lets us open no ping socket.
    :param on_answer: called in the loop with the probe's key and the round trip in ms.
    """

    def __init__(
        self, on_answer: Callable[[Hashable, float], None], clock: Callable[[], float]
    ) -> None:
        self._on_answer = on_answer
        self._clock = clock
        self.forbidden: frozenset[int] = frozenset()
        self._sockets: dict[int, socket.socket] = {}
        self._pending: dict[bytes, _Pending] = {}
        self._sequence = 0
        self._tried_s: float | None = None
        self._complained = False

    def families(self) -> frozenset[int]:
        """4 and 6, as far as ping sockets may be opened; tries again every five minutes."""
        now_s = self._clock()
        missing = _FAMILIES.keys() - self._sockets.keys()
        if missing and (self._tried_s is None or now_s >= self._tried_s + _REOPEN_AFTER_S):
            self._tried_s = now_s
            self.forbidden = frozenset()
            for version in sorted(missing):
                self._open(version)
        return frozenset(self._sockets)

    def send(self, key: Hashable, ip: str) -> bool:
        """One packet. False when it could not leave; no answer will come then."""
        version = version_of(ip)
        sock = self._sockets.get(version)
        if sock is None or len(self._pending) >= _MAX_PENDING:
            return False
        self._sequence = (self._sequence + 1) & 0xFFFF
        token = secrets.token_bytes(_TOKEN_BYTES)
        header = _HEADER.pack(_FAMILIES[version].request, 0, 0, 0, self._sequence)
        sent_s = self._clock()
        try:
            sock.sendto(header + token, (ip, 0))
        except OSError:  # no route, a firewall's no, an address that is none of this machine's kind
            return False
        self._pending[token] = _Pending(key, ip, self._sequence, sent_s)
        return True

    def expire(self) -> tuple[Hashable, ...]:
        """Keys of probes that nobody answered in time; each is told once."""
        late_s = self._clock() - DEADLINE_S
        late = [token for token, one in self._pending.items() if one.sent_s <= late_s]
        return tuple(self._pending.pop(token).key for token in late)

    def next_expiry_s(self) -> float | None:
        """When `expire` will have something to tell, on the clock."""
        return min((one.sent_s + DEADLINE_S for one in self._pending.values()), default=None)

    def close(self) -> None:
        for sock in self._sockets.values():
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets.clear()
        self._pending.clear()

    def _open(self, version: int) -> None:
        kind = _FAMILIES[version]
        try:
            sock = socket.socket(kind.family, socket.SOCK_DGRAM, kind.protocol)
        except PermissionError:
            self.forbidden |= {version}
            if not self._complained:
                self._complained = True
                _log.warning(
                    "ping sockets are forbidden, TCP handshakes tell how far the others are",
                    way_out="let net.ipv4.ping_group_range include the group of meshd",
                )
            return
        except OSError as error:  # a kernel without this family
            _log.info("no ping socket", ip_version=version, error=str(error))
            return
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        asyncio.get_running_loop().add_reader(sock, self._readable, version, sock)
        self._sockets[version] = sock

    def _readable(self, version: int, sock: socket.socket) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                data, ancillary, _, source = sock.recvmsg(256, 128)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error for an earlier packet; that one expires
                continue
            self._received(version, data, source[0], _waited_s(ancillary))

    def _received(self, version: int, data: bytes, source: str, waited_s: float) -> None:
        now_s = self._clock()
        if len(data) != _HEADER.size + _TOKEN_BYTES:
            return
        kind, code, _, _, sequence = _HEADER.unpack_from(data)
        pending = self._pending.get(data[_HEADER.size :])
        if (
            pending is None
            or kind != _FAMILIES[version].reply
            or code != 0
            or sequence != pending.sequence
            or source != pending.ip
        ):
            return
        del self._pending[data[_HEADER.size :]]
        elapsed_s = max(0.0, now_s - pending.sent_s)
        # A loop that engines kept from running is no distance.
        rtt_s = elapsed_s - waited_s if waited_s < elapsed_s else elapsed_s
        self._on_answer(pending.key, rtt_s * 1000)


def _waited_s(ancillary: list[tuple[int, int, bytes]]) -> float:
    """Between the packet's arrival in the kernel and now; 0 where that is not known.

    The only stamp there is comes from the wall clock. A step of it in this moment may spoil one
    sample, never by more than what the monotonic clock says.
    """
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS) and len(data) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            waited_s: float = (time.time_ns() - seconds * 10**9 - nanoseconds) / 1e9
            return max(0.0, waited_s)
    return 0.0
