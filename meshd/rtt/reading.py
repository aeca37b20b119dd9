"""One look at a TCP connection, as the kernel measured it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """One established connection.

    :ivar cookie: the kernel's name for the socket, unique while the machine runs.
    :ivar rtt_ms: smoothed; answers that wait for a delayed ACK make it too long by 40 ms or more.
    :ivar min_ms: over the last five minutes (net.ipv4.tcp_min_rtt_wlen); None before any.
    :ivar segments: received so far; a reading with the same count measured nothing new.
    """

    ip: str
    port: int
    cookie: int
    rtt_ms: float
    min_ms: float | None
    segments: int
