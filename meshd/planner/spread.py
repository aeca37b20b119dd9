"""Deals the experts of one layer out to nodes, so that each expert has a home. Pure.

Ranks stand for experts: 0 is the one that was chosen most often. What nodes have room for beside
one home for each expert is spent on the most chosen ones, which go to every node that has room.
The rest is dealt out so that the node that keeps the least keeps as much as can be. All of it is
whole numbers and ties go to the first, so that every node works out the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import NamedTuple

# Of what the worst node could keep at most, how much is good enough to stop exchanging.
_ENOUGH = 0.995
# Exchanges for each node; every one of them brings up the node that keeps the least.
_EXCHANGES = 4


@dataclass(frozen=True, slots=True)
class Room:
    """What nodes have room for in each layer (or each group of one), and how that is spent.

    :ivar rooms: experts, by node. :ivar homes: of each expert, at least.
    :ivar shared: so many ranks go to every node that has room for them.
    :ivar spare: of the next rank, how many more homes there are.
    """

    experts: int
    rooms: tuple[int, ...]
    homes: int
    shared: int
    spare: int

    @property
    def core(self) -> int:
        """Ranks that are on every node."""
        return min(self.shared, *self.rooms)


def room(experts: int, rooms: Sequence[int], homes: int) -> Room | None:
    """None where not every expert finds so many homes."""

    def spare(shared: int) -> int:
        rest = experts - shared
        return sum(min(max(one - shared, 0), rest) for one in rooms) - homes * rest

    if not rooms or spare(0) < 0:
        return None
    shared = 0
    while shared < experts and spare(shared + 1) >= 0:
        shared += 1
    return Room(experts, tuple(rooms), homes, shared, spare(shared))


def together(counts: Sequence[int], room: Room) -> int:
    """Choices that all nodes keep in sum, whoever keeps which."""
    sums = (0, *accumulate(counts))
    rest = room.homes * (sums[-1] - sums[room.shared])
    spare = room.spare * counts[room.shared] if room.spare else 0
    return sum(sums[min(room.shared, one)] for one in room.rooms) + rest + spare


def spread(counts: Sequence[int], room: Room, begun: Sequence[int]) -> tuple[list[int], ...]:
    """Ranks by node, ascending, each node as many as it has room for.

    :param counts: by rank, how often the expert was chosen; none is above the one before it.
    :param begun: by node, choices that it keeps of the layer's other groups.
    """
    first = room.shared
    dealt = [list(range(min(first, one))) for one in room.rooms]
    sums = (0, *accumulate(counts))
    seats = sorted(
        (
            _Seat(node, one - first, begun[node] + sums[first])
            for node, one in enumerate(room.rooms)
        ),
        key=lambda seat: (seat.left, seat.mass, seat.node),
    )
    seats = [seat for seat in seats if seat.left > 0]
    copies = [_Copies(rank, room.homes) for rank in range(first, room.experts)]
    if copies:
        copies[0] = _Copies(first, room.homes + room.spare)
    if seats:
        for seat in _dealt(seats, copies, counts, _most(seats, copies, sums, room.homes)):
            dealt[seat.node] += sorted(seat.taken)
    return tuple(dealt)


class _Copies(NamedTuple):
    """An expert that is to be dealt out, to so many nodes."""

    rank: int
    number: int


class _Seat:
    """A node at the deal. :ivar left: how many it still takes. :ivar mass: what it keeps so far."""

    __slots__ = ("left", "mass", "node", "taken")

    def __init__(self, node: int, left: int, mass: int) -> None:
        self.node, self.left, self.mass = node, left, mass
        self.taken: list[int] = []


def _most(
    seats: Sequence[_Seat], copies: Sequence[_Copies], sums: Sequence[int], homes: int
) -> float:
    """No division lets the one that keeps the least keep more: of any so many the ones with the
    least room keep the least, even if they had the best of all and shared it evenly.
    """
    most = float("inf")
    mass = left = 0
    for number, seat in enumerate(seats, 1):
        mass += seat.mass
        left += seat.left
        most = min(most, (mass + _best(left, number, copies, sums, homes)) / number)
    return most


def _best(
    places: int, nodes: int, copies: Sequence[_Copies], sums: Sequence[int], homes: int
) -> int:
    """Choices that so many places keep at most, none twice on one node."""
    first, each = min(copies[0].number, nodes), min(homes, nodes)
    mass = first * _count(copies[0].rank, sums)
    if len(copies) == 1:
        return mass
    begin = copies[1].rank
    full, rest = divmod(places - first, each)
    mass += each * (sums[begin + full] - sums[begin])
    return mass + (rest * _count(begin + full, sums) if rest else 0)


def _count(rank: int, sums: Sequence[int]) -> int:
    return sums[rank + 1] - sums[rank]


def _dealt(
    seats: Sequence[_Seat], copies: Sequence[_Copies], counts: Sequence[int], most: float
) -> Sequence[_Seat]:
    """Dealt by what each keeps so far, which comes out even where all have the same room; else also
    by what each will keep, which does where rooms differ much.
    """
    again = [_Seat(seat.node, seat.left, seat.mass) for seat in reversed(seats)]
    for tried, foreseeing in ((seats, False), (again, True)):
        _deal(tried, copies, counts, foreseeing=foreseeing)
        _exchange(tried, counts, most)
        if _least(tried) >= _ENOUGH * most:
            return tried
    return max((seats, again), key=_least)


def _least(seats: Sequence[_Seat]) -> int:
    return min(seat.mass for seat in seats)


def _deal(
    seats: Sequence[_Seat],
    copies: Sequence[_Copies],
    counts: Sequence[int],
    *,
    foreseeing: bool,
) -> None:
    """Each expert to those that keep the least; of equals to the first of them.

    :param foreseeing: as if all that each still takes were as much as the average.
    """
    places = sum(number for _, number in copies)
    # By `places`, so that there are no fractions.
    average = sum(number * counts[rank] for rank, number in copies) if foreseeing else 0
    waiting = [
        (seat.mass * places + seat.left * average, at, seat.left) for at, seat in enumerate(seats)
    ]
    heapify(waiting)
    bound: list[int] = []  # who has to take every one that remains, to be full in the end
    widest = max(seat.left for seat in seats)
    for done, (rank, number) in enumerate(copies):
        remaining = len(copies) - done
        if widest >= remaining:
            bound += [at for _, at, left in waiting if left >= remaining]
            waiting = [entry for entry in waiting if entry[2] < remaining]
            heapify(waiting)
            widest = max((left for _, _, left in waiting), default=0)
        takers = [heappop(waiting) for _ in range(number - len(bound))]
        more = counts[rank] * places - average
        for mass, at, left in takers:
            seats[at].taken.append(rank)
            if left > 1:
                heappush(waiting, (mass + more, at, left - 1))
        for at in bound:
            seats[at].taken.append(rank)
    for seat in seats:
        seat.mass += sum(counts[rank] for rank in seat.taken)


def _exchange(seats: Sequence[_Seat], counts: Sequence[int], most: float) -> None:
    """Exchange experts between the node that keeps the least and others while that helps it."""
    for _ in range(_EXCHANGES * len(seats)):
        worst = min(seats, key=lambda seat: (seat.mass, seat.node))
        if worst.mass >= _ENOUGH * most:
            return
        for other in sorted(seats, key=lambda seat: (-seat.mass, seat.node)):
            found = _best_exchange(worst, other, counts)
            if found is not None:
                break
        else:
            return
        given, taken = found
        gain = counts[taken] - counts[given]
        for seat, old, new, change in (
            (worst, given, taken, gain),
            (other, taken, given, -gain),
        ):
            seat.taken.remove(old)
            seat.taken.append(new)
            seat.mass += change


def _best_exchange(worst: _Seat, other: _Seat, counts: Sequence[int]) -> tuple[int, int] | None:
    """What `worst` gives and what it takes for it, so that both then keep about as much."""
    gap = other.mass - worst.mass
    if gap < 2:
        return None
    own = sorted(set(worst.taken) - set(other.taken), reverse=True)
    rising = [counts[rank] for rank in own]
    best: tuple[int, int, int] | None = None
    for taken in sorted(set(other.taken) - set(worst.taken)):
        near = bisect_left(rising, counts[taken] - gap / 2)
        for at in (near - 1, near):
            if 0 <= at < len(own):
                gain = counts[taken] - rising[at]
                value = min(gain, gap - gain)
                if value > 0 and (best is None or value > best[0]):
                    best = (value, own[at], taken)
    return best and best[1:]
