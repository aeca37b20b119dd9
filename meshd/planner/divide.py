"""Layers over devices so that a token takes the least time: exact for a given order. Pure.

A token's time is a sum over the devices that take part: so many bytes read, and a fixed cost of
taking part (round trip, overhead). So the best division of the first j layers over the first
devices builds on the best division of fewer layers over fewer devices, whoever of them stays
out. All subsets of the devices are searched in one pass, `layers` steps a device: the least of
`cost(k) - read(k) * seconds a byte` over the window of k that memory allows, in a monotone queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf


@dataclass(frozen=True, slots=True)
class Seat:
    """A device where layers may lie.

    :ivar room_bytes: for weights, KV cache and compute buffer.
    :ivar byte_s: seconds to read one byte. :ivar fixed_s: of every token, if it takes part at all.
    """

    node: str
    device: str
    room_bytes: int
    byte_s: float
    fixed_s: float


@dataclass(frozen=True, slots=True)
class Lender:
    """Another node's seats, one after the other. :ivar penalty_s: for taking it away from others.

    Layers may lie on any of the seats, or on none.
    """

    node: str
    seats: tuple[Seat, ...]
    penalty_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the layers ask for: sums over the layers before each (one more than there are layers),
    and compute buffers a layer, of which a device needs the largest of its own.

    :ivar work: of a device; ``first_work`` of the one that has the first layer.
    :ivar ram_work: of the host's processor.
    """

    reads: tuple[int, ...]
    sizes: tuple[int, ...]
    work: tuple[int, ...]
    first_work: tuple[int, ...]
    ram_work: tuple[int, ...]
    _lows: dict[int, list[int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def layers(self) -> int:
        return len(self.work)

    def lows(self, room_bytes: int) -> list[int]:
        """For every end of a run of layers, its earliest start for which the room is enough; the
        end itself where not even one layer fits.
        """
        known = self._lows.get(room_bytes)
        if known is None:
            known = self._lows[room_bytes] = _lows(self.sizes, self.work, room_bytes)
        return known


@dataclass(frozen=True, slots=True)
class Own:
    """The host's seats: RAM before all others, GPUs behind, of which the last has the output layer.

    :ivar ram_least: layers that RAM takes at least.
    :ivar output: room and cost of a GPU that has the output layer, which takes a layer at least;
        None where the output is in RAM.
    """

    ram: Seat | None = None
    ram_least: int = 0
    gpus: tuple[Seat, ...] = ()
    output: Seat | None = None


Path = tuple["Path", Seat, int] | None
_Row = tuple[list[float], list[Path]]


def divide(load: Load, own: Own, lenders: Sequence[Lender]) -> tuple[tuple[Seat, int], ...] | None:
    """Which seats take how many layers, in order; at least one lender has some.

    Lenders stand in the order in which they are given. None where it cannot be done.
    """
    count = load.layers
    alone = _ram(load, own)
    joined: _Row = ([inf] * (count + 1), [None] * (count + 1))
    for lender in lenders:
        before = _better(alone, joined)
        entering = ([cost + lender.penalty_s for cost in before[0]], before[1])
        used: _Row | None = None
        for seat in lender.seats:
            source = entering if used is None else _better(entering, used)
            taken = _extend(load, source, seat)
            used = taken if used is None else _better(used, taken)
        if used is not None:
            joined = _better(joined, used)
    for seat in own.gpus:
        joined = _better(joined, _extend(load, joined, seat))
    if own.output is not None:
        joined = _extend(load, joined, own.output)
    if joined[0][count] == inf:
        return None
    pieces: list[tuple[Seat, int]] = []
    path = joined[1][count]
    while path is not None:
        path, seat, layers = path
        pieces.append((seat, layers))
    return tuple(reversed(pieces))


def _ram(load: Load, own: Own) -> _Row:
    """The host's own first layers, or none."""
    count = load.layers
    costs, paths = [inf] * (count + 1), [None] * (count + 1)  # type: tuple[list[float], list[Path]]
    if own.ram_least == 0:
        costs[0] = 0.0
    if own.ram is None:
        return costs, paths
    widest = 0
    for layers in range(1, count + 1):
        widest = max(widest, load.ram_work[layers - 1])
        if load.sizes[layers] + widest > own.ram.room_bytes:
            break
        if layers >= own.ram_least:
            costs[layers] = load.reads[layers] * own.ram.byte_s + own.ram.fixed_s
            paths[layers] = (None, own.ram, layers)
    return costs, paths


def _better(one: _Row, other: _Row) -> _Row:
    """The cheaper of two ways to each number of layers; of equals the first."""
    costs, paths = list(one[0]), list(one[1])
    for number, cost in enumerate(other[0]):
        if cost < costs[number]:
            costs[number], paths[number] = cost, other[1][number]
    return costs, paths


def _extend(load: Load, source: _Row, seat: Seat) -> _Row:
    """The cheapest way to each number of layers whose last ones, at least one, lie on this seat."""
    count, reads = load.layers, load.reads
    costs, paths = [inf] * (count + 1), [None] * (count + 1)  # type: tuple[list[float], list[Path]]
    before, ways = source
    lows = load.lows(seat.room_bytes)
    byte_s, fixed_s = seat.byte_s, seat.fixed_s
    # The run that begins with the first layer has a larger buffer, so it has no place in the queue.
    from_first = _from_first(load, seat.room_bytes) if before[0] < inf else 0
    queue: deque[tuple[float, int]] = deque()
    for end in range(1, count + 1):
        start = end - 1
        if start and before[start] < inf:
            key = before[start] - reads[start] * byte_s
            while queue and queue[-1][0] > key:
                queue.pop()
            queue.append((key, start))
        low = lows[end]
        while queue and queue[0][1] < low:
            queue.popleft()
        read_s = reads[end] * byte_s + fixed_s
        if queue:
            key, start = queue[0]
            costs[end] = key + read_s
            paths[end] = (ways[start], seat, end - start)
        if end <= from_first and before[0] + read_s < costs[end]:
            costs[end] = before[0] + read_s
            paths[end] = (ways[0], seat, end)
    return costs, paths


def _from_first(load: Load, room_bytes: int) -> int:
    widest = end = 0
    for end in range(1, load.layers + 1):
        widest = max(widest, load.first_work[end - 1])
        if load.sizes[end] + widest > room_bytes:
            return end - 1
    return end


def _lows(sizes: Sequence[int], work: Sequence[int], room_bytes: int) -> list[int]:
    lows = [0] * len(sizes)
    if len(set(work)) <= 1:
        room_bytes -= work[0] if work else 0
        for end in range(1, len(sizes)):
            low = lows[end - 1]
            while low < end and sizes[end] - sizes[low] > room_bytes:
                low += 1
            lows[end] = low
        return lows
    low = 0
    widest: deque[int] = deque()
    for end in range(1, len(sizes)):
        while widest and work[widest[-1]] <= work[end - 1]:
            widest.pop()
        widest.append(end - 1)
        while low < end and sizes[end] - sizes[low] + work[widest[0]] > room_bytes:
            low += 1
            while widest and widest[0] < low:
                widest.popleft()
        lows[end] = low
    return lows
