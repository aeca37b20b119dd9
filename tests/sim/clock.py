"""Virtual time: events in order of their time, then of their making. Nothing here reads a clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Event:
    """One thing to happen. `cancel` makes it a no-op."""

    __slots__ = ("action", "arguments", "at_s", "number")

    def __init__(
        self, at_s: float, number: int, action: Callable[..., None] | None, arguments: Any
    ) -> None:
        self.at_s = at_s
        self.number = number
        self.action = action
        self.arguments = arguments

    def __lt__(self, other: Event) -> bool:
        return (self.at_s, self.number) < (other.at_s, other.number)

    def cancel(self) -> None:
        self.action = None
        self.arguments = ()


class Clock:
    """:ivar now_s: seconds since the simulation began."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Event]] = []
        self._number = 0

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> Event:
        """Have `action(*arguments)` happen in `delay_s`; not before what is already due then."""
        self._number += 1
        event = Event(self.now_s + max(0.0, delay_s), self._number, action, arguments)
        heapq.heappush(self._heap, (event.at_s, event.number, event))
        return event

    def run_until(self, end_s: float) -> None:
        """Let everything happen that is due up to `end_s`, which is then the time."""
        heap = self._heap
        while heap and heap[0][0] <= end_s:
            at_s, _, event = heapq.heappop(heap)
            action = event.action
            if action is None:
                continue
            self.now_s = at_s
            self.events += 1
            action(*event.arguments)
        self.now_s = end_s
