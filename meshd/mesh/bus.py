"""The port to whatever carries messages between nodes: Zenoh, or a simulated network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MESSAGE_MAX_BYTES = 60 * 1024

ANY_CORE = ""
"""As the target of an `Ask`: whichever core answers."""


@dataclass(frozen=True, slots=True)
class Put:
    """Effect: bring `data` to every other node, with no promise that it arrives."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Effect: put a question to one node; `Member.answered(number, ...)` hears what came of it.

    :ivar target: a node's id, or `ANY_CORE`.
    """

    number: int
    target: str
    data: bytes
    timeout_s: float


Effect = Put | Ask


class Listener(Protocol):
    """Who hears a bus. All calls come on the event loop's thread and must not block."""

    def heard(self, data: bytes) -> None:
        """Somebody's `Put`; duplicates, reordering and garbage are possible."""

    def asked(self, data: bytes) -> bytes | None:
        """A question to us; None leaves it unanswered."""

    def token(self, node: str, *, up: bool) -> None:
        """A node's liveliness token came or went. Never about ourselves."""


class Bus(Protocol):
    """One session with the mesh."""

    @property
    def core(self) -> bool:
        """Whether we relay for others."""

    async def put(self, data: bytes) -> None:
        """:raises BusError: we have no session now."""

    async def ask(self, target: str, data: bytes, timeout_s: float) -> bytes | None:
        """The answer, or None when none came in time."""

    async def close(self) -> None:
        """Take back our token and end the session."""


class BusError(Exception):
    """The mesh cannot be reached; the message says why in one line."""
