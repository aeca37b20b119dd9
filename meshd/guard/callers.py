"""Callers that have not shown yet who they are: who makes room, and what is said of them.

A door lies open to whoever reaches the machine. So few are kept, one address cannot take the places
of all others, and the log names each address with each reason once in a while, not each connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from time import monotonic

import structlog

MOST_CALLERS = 64
SAID_AGAIN_S = 600.0
MOST_SAID = 32

_log = structlog.get_logger("meshd.guard")


class Callers:
    """:ivar refused: sent away so far."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.refused = 0
        self._clock = clock
        self._waiting: dict[asyncio.Task[None], str] = {}
        self._said: set[tuple[str, str]] = set()
        self._said_since_s = clock()

    def __len__(self) -> int:
        return len(self._waiting)

    def tasks(self) -> list[asyncio.Task[None]]:
        return list(self._waiting)

    def add(self, task: asyncio.Task[None], address: str) -> None:
        """May end another one's task: the oldest of those that are most from one neighbourhood."""
        if len(self._waiting) >= MOST_CALLERS:
            former = self._in_the_way()
            where = self._waiting.pop(former)
            former.cancel()
            self.refuse(where, "too many callers")
        self._waiting[task] = neighbourhood(address)

    def leave(self, task: asyncio.Task[None]) -> None:
        """It has shown who it is, or has ended."""
        self._waiting.pop(task, None)

    def refuse(self, address: str, why: str) -> None:
        """Count it, and say it unless that was said lately."""
        self.refused += 1
        now_s = self._clock()
        if now_s - self._said_since_s >= SAID_AGAIN_S:
            self._said.clear()
            self._said_since_s = now_s
        one = (neighbourhood(address), why)
        if one in self._said or len(self._said) > MOST_SAID:
            return
        if len(self._said) == MOST_SAID:
            why = "and so are others, of which nothing more is said for a while"
        self._said.add(one)
        _log.warning("caller sent away", address=address, why=why, so_far=self.refused)

    def _in_the_way(self) -> asyncio.Task[None]:
        ((most, _),) = Counter(self._waiting.values()).most_common(1)
        return next(task for task, where in self._waiting.items() if where == most)


def neighbourhood(address: str) -> str:
    """What one machine can have many of counts as one: of IPv6, the first 64 bits."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Address(int(found) >> 64 << 64))
    return str(found)
