"""What every node sent and received, in messages and bytes."""

from __future__ import annotations

from dataclasses import dataclass

OVERHEAD_BYTES = 60
"""QUIC short header and tag, UDP, IP, and Zenoh's own frame around a small payload."""


@dataclass(slots=True)
class Traffic:
    """One node's counters. :ivar relayed: of the sent ones, those that a core passed on."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    relayed: int = 0

    def send(self, size_bytes: int, copies: int = 1) -> None:
        self.sent += copies
        self.sent_bytes += copies * (size_bytes + OVERHEAD_BYTES)

    def relay(self, size_bytes: int, copies: int) -> None:
        self.relayed += copies
        self.send(size_bytes, copies)

    def receive(self, size_bytes: int) -> None:
        self.received += 1
        self.received_bytes += size_bytes + OVERHEAD_BYTES

    def copy(self) -> Traffic:
        return Traffic(self.sent, self.sent_bytes, self.received, self.received_bytes, self.relayed)

    def since(self, before: Traffic) -> Traffic:
        return Traffic(
            self.sent - before.sent,
            self.sent_bytes - before.sent_bytes,
            self.received - before.received,
            self.received_bytes - before.received_bytes,
            self.relayed - before.relayed,
        )
