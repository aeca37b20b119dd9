"""What the trials ask of a fleet of nodes, whoever's they are."""

from __future__ import annotations

import os
import signal
from typing import Protocol

from tools.bench_mesh.observed import Observations


class Fleet(Protocol):
    """:ivar name: for the table. :ivar suspects: whether it tells suspicion before death.

    :ivar settles: the part of the settling time that it needs before it is at rest.
    :ivar record_bytes: what a node publishes of itself.
    """

    name: str
    suspects: bool
    settles: float
    record_bytes: int
    seen: Observations

    @property
    def pids(self) -> dict[int, int]:
        """Of what runs now, by port."""

    async def prepare(self, port: int) -> None:
        """Have a process ready, as far as it can be without taking part."""

    async def begin(self, port: int) -> float:
        """Let it take part. :returns: when it was told to."""

    async def mark(self, port: int, mark: int) -> float:
        """Change its record. :returns: when it was told to."""

    async def leave(self, port: int) -> float:
        """Let it leave in order. :returns: when it was told to."""

    async def kill(self, port: int) -> float:
        """As ``kill -9`` does. :returns: when."""

    async def close(self) -> None: ...


def node_name(port: int) -> str:
    return f"n{port:02}"


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def go_on(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
