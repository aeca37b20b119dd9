"""Who is next of those that wait for one model: fair between keys, high priorities first. Pure.

Of two keys that both have requests waiting, the one goes that was served longer ago; within a key
requests go in the order in which they came. A priority is a head start in seconds: one level ahead
counts as much as having been passed over for `HEAD_START_S` longer. So a higher priority goes
first, and a lower one is late by a bounded time and never starves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from meshd.keys.key import MOST_PRIORITY

T = TypeVar("T")

HEAD_START_S = 15.0
"""By which one level of priority goes before the next."""

PRIORITY_MOST = MOST_PRIORITY
"""Priorities lie between minus this and this, as in files with keys; 0 is the usual one."""

# Of what is still free one key may take so many times as much: alone it gets four fifths of all.
_SHARE_OF_FREE = 4


class Admission(StrEnum):
    """Whether one more may wait. KEY_FULL: there is room, but not for more of that key."""

    ENTER = "enter"
    KEY_FULL = "key_full"
    FULL = "full"


def admission(waiting: int, own: int, limit: int) -> Admission:
    """Whether one more request may begin to wait.

    A key that has none waiting gets any last place; the more it has, the more must be left free for
    others. However many keys crowd in, there is no number of places that one of them can fill.

    :param waiting: requests that wait, in all. :param own: of these, under the same key.
    :param limit: places in all.
    """
    free = limit - waiting
    if free <= 0:
        return Admission.FULL
    if own and own >= _SHARE_OF_FREE * (free - 1):
        return Admission.KEY_FULL
    return Admission.ENTER


@dataclass(frozen=True, slots=True, eq=False)
class Ticket(Generic[T]):
    """A place in a queue. :ivar serial: counts up with all that happens in the queue.

    :ivar first: it goes before all others: it has had its turn, and lost it through no fault of
        its own.
    """

    item: T
    key: str
    priority: int
    entered_s: float
    serial: int
    first: bool = False


_Rank = tuple[bool, float, int]


@dataclass(slots=True)
class _Line(Generic[T]):
    """What waits under one key. :ivar served: when it had its last turn, and in which place."""

    levels: dict[tuple[bool, int], OrderedDict[int, Ticket[T]]] = field(default_factory=dict)
    served: tuple[float, int] | None = None
    count: int = 0


class FairQueue(Generic[T]):
    """Clocks are monotonic seconds that the caller passes in."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        self._serial = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, ticket: Ticket[T]) -> bool:
        line = self._lines.get(ticket.key)
        level = line.levels.get(_level(ticket)) if line else None
        return level is not None and ticket.serial in level

    def add(
        self, item: T, key: str, priority: int = 0, *, now_s: float, first: bool = False
    ) -> Ticket[T]:
        """Let it wait. :param now_s: since when it waits. :param first: before all that wait
        already.
        """
        priority = max(-PRIORITY_MOST, min(PRIORITY_MOST, priority))
        ticket = Ticket(item, key, priority, now_s, self._next_serial(), first)
        line = self._lines.setdefault(key, _Line())
        level = line.levels.setdefault(_level(ticket), OrderedDict())
        last = next(reversed(level.values()), ticket)
        level[ticket.serial] = ticket
        if ticket.entered_s < last.entered_s:
            # It waited elsewhere before.
            for one in sorted(level.values(), key=lambda one: (one.entered_s, one.serial)):
                level.move_to_end(one.serial)
        line.count += 1
        self._count += 1
        return ticket

    def remove(self, ticket: Ticket[T]) -> bool:
        """It waits no longer. :returns: whether it did."""
        line = self._lines.get(ticket.key)
        level = line.levels.get(_level(ticket)) if line else None
        if line is None or level is None or level.pop(ticket.serial, None) is None:
            return False
        if not level:
            del line.levels[_level(ticket)]
        line.count -= 1
        self._count -= 1
        if not line.count:
            # Whoever comes back is ranked by when it came, which is later than any turn it had.
            del self._lines[ticket.key]
        return True

    def serve(self, ticket: Ticket[T], now_s: float) -> bool:
        """It has had its turn: its key goes behind the others. :returns: whether it waited."""
        line = self._lines.get(ticket.key)
        if line is not None and ticket in self:
            line.served = now_s, self._next_serial()
        return self.remove(ticket)

    def next(self, fits: Callable[[T], bool] = lambda _: True) -> Ticket[T] | None:
        """Whose turn it is. It waits on until it is served or removed.

        :param fits: whether it can be helped now at all; else it is passed over and keeps its
            place.
        """
        best: tuple[_Rank, Ticket[T]] | None = None
        for line in self._lines.values():
            found = self._of_line(line, fits)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best[1] if best else None

    def ahead(self, ticket: Ticket[T]) -> int:
        """How many would be served before it if nobody else came; an estimate where priorities mix.

        0 when it does not wait.
        """
        own = self._lines.get(ticket.key)
        if own is None or ticket not in self:
            return 0
        before = sum(1 for one in self._tickets(own) if _own_rank(one) < _own_rank(ticket))
        mine = _rank(own, ticket)
        total = before
        for line in self._lines.values():
            if line is own:
                continue
            higher = equal = 0
            earliest: _Rank | None = None
            for (first, priority), level in line.levels.items():
                if (first, priority) > _level(ticket):
                    higher += len(level)
                elif (first, priority) == _level(ticket):
                    equal = len(level)
                    earliest = _rank(line, next(iter(level.values())))
            rounds = before + (1 if earliest is not None and earliest < mine else 0)
            total += higher + min(equal, rounds)
        return total

    def __iter__(self) -> Iterator[Ticket[T]]:
        """All that wait, in no order that means anything."""
        for line in self._lines.values():
            yield from self._tickets(line)

    def _of_line(self, line: _Line[T], fits: Callable[[T], bool]) -> tuple[_Rank, Ticket[T]] | None:
        heads = (
            next((one for one in level.values() if fits(one.item)), None)
            for level in line.levels.values()
        )
        candidates = [one for one in heads if one is not None]
        if not candidates:
            return None
        chosen = min(candidates, key=_own_rank)
        return _rank(line, chosen), chosen

    def _tickets(self, line: _Line[T]) -> Iterator[Ticket[T]]:
        for level in line.levels.values():
            yield from level.values()

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial


def _level(ticket: Ticket[T]) -> tuple[bool, int]:
    return ticket.first, ticket.priority


def _own_rank(ticket: Ticket[T]) -> _Rank:
    """Among those of one key, the smallest first."""
    return (not ticket.first, ticket.entered_s - ticket.priority * HEAD_START_S, ticket.serial)


def _rank(line: _Line[T], ticket: Ticket[T]) -> _Rank:
    """Among keys, the smallest first: by since when it was passed over, less its head start."""
    since = ticket.entered_s, ticket.serial
    if line.served is not None:
        since = max(since, line.served)
    return (not ticket.first, since[0] - ticket.priority * HEAD_START_S, since[1])
