"""The best group of nodes for a split with one host: which devices, how many layers on each. Pure.

Every subset of up to `LENDERS_MOST` nodes is searched at once (`divide`), which is all of a small
mesh; of a large one the most promising. What comes out is held against the same estimate of memory
that every other plan goes by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, permutations, product

from meshd.models.facts import GgufFacts
from meshd.planner.divide import Lender, Own, Seat, divide
from meshd.planner.fit import Shape
from meshd.planner.layout import RAM
from meshd.planner.memory import DeviceMemory, estimate
from meshd.planner.pace import CALIBRATION, Pace, hop_s, layers_s, output_read
from meshd.planner.placement import HOST, pipeline
from meshd.planner.workload import GPU, Workload

LENDERS_MOST = 14
"""The engine takes 16 servers (GGML_RPC_MAX_SERVERS); more than a few are slow anyway."""
_ORDER_STEPS = 4000
_AS_FAST = 1.005
_EXACT = 8
"""Among so many lenders every way to use the host's own devices is tried, else the likely ones."""


@dataclass(frozen=True, slots=True)
class Host:
    """The node that would be the host.

    :ivar rooms: what may be planned with, by pool. :ivar gpus: ids, the fastest first.
    :ivar unified: those of them whose pool is the RAM.
    """

    node: str
    rooms: Mapping[str, int]
    gpus: tuple[str, ...]
    paces: Mapping[str, Pace]
    unified: tuple[str, ...] = ()
    network_bytes_s: int = 0


@dataclass(frozen=True, slots=True)
class Offered:
    """One place of a lender: its room, its speed, and how far away it is."""

    node: str
    device: str
    room_bytes: int
    pace: Pace
    rtt_s: float
    network_bytes_s: int


@dataclass(frozen=True, slots=True)
class Lending:
    """All places of a lender. :ivar penalty: how much slower a split may be for not having it."""

    node: str
    name: str
    places: tuple[Offered, ...]
    penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    node: str
    device: str
    layers: int
    memory: DeviceMemory


@dataclass(frozen=True, slots=True)
class Group:
    """A split that fits. :ivar pieces: in the order of the layers.

    :ivar host_memory: of the host's RAM, also where no layer lies there.
    """

    shape: Shape
    pieces: tuple[Piece, ...]
    host_memory: DeviceMemory
    token_s: float


class Search:
    """One model and one host; what does not depend on the group is worked out once."""

    def __init__(self, facts: GgufFacts, host: Host, shape: Shape) -> None:
        self._facts = facts
        self._host = host
        self._shape = shape
        self._work = Workload(facts, shape)
        self._reads = self._work.reads

    def best(
        self, lenders: Sequence[Lending], *, force: str = "", thorough: bool | None = None
    ) -> Group | None:
        """The fastest group that fits; None where none does.

        :param force: a lender that must take part.
        :param thorough: every way to use the host's own devices; None to judge by their number.
        """
        if thorough is None:
            thorough = len(lenders) <= _EXACT
        room = sum(place.room_bytes for one in lenders for place in one.places)
        if room + sum(self._host.rooms.values()) < self._work.load(pipelined=False).sizes[-1]:
            return None
        found = self._fastest([replace(one, penalty=0.0) for one in lenders], 0.0, force, thorough)
        if found is not None and any(one.penalty for one in lenders):
            found = self._fastest(lenders, found.token_s, force, thorough) or found
        return self._levelled(found, lenders) if found is not None else None

    def _levelled(self, found: Group, lenders: Sequence[Lending]) -> Group:
        """Layers spread evenly over devices that are equally fast, where memory allows: a token
        takes about as long, a prompt is done sooner, and none of them is full.
        """
        seats = self.seats(lenders)
        alike: dict[float, list[int]] = {}
        for number, piece in enumerate(found.pieces):
            alike.setdefault(seats[piece.node, piece.device].byte_s, []).append(number)
        counts = [piece.layers for piece in found.pieces]
        for equals in alike.values():
            each, over = divmod(sum(counts[number] for number in equals), len(equals))
            for position, number in enumerate(equals):
                counts[number] = each + (position < over)
        parts = [
            (piece.node, piece.device, count)
            for piece, count in zip(found.pieces, counts, strict=True)
        ]
        last = found.pieces[-1]
        own = last.node == self._host.node and last.device != RAM
        even = self.group(parts, seats, last.device if own else HOST)
        return even if even is not None and even.token_s <= found.token_s * _AS_FAST else found

    def _fastest(
        self, lenders: Sequence[Lending], whole_s: float, force: str, thorough: bool
    ) -> Group | None:
        best: tuple[float, Group] | None = None
        penalties = {one.node: one.penalty * whole_s for one in lenders}
        orders = [self._lenders(lenders, penalties, force)]
        if thorough and len(set(self._reads)) > 1:
            # Layers differ: which of them lie together on a device depends on the devices' order.
            orders = list(_orders(orders[0], len(self._reads)))
        for own, pipelined in self._ways():
            if best is not None and not thorough:
                break
            load = self._work.load(pipelined=pipelined)
            for order in orders:
                pieces = divide(load, own, order)
                group = self._checked(pieces, own) if pieces is not None else None
                if group is None or (force and force not in {one.node for one in group.pieces}):
                    continue
                nodes = {piece.node for piece in group.pieces}
                cost = group.token_s + sum(penalties.get(node, 0.0) for node in nodes)
                if best is None or cost < best[0]:
                    best = (cost, group)
        return best[1] if best is not None else None

    def token_s(self, pieces: Sequence[tuple[Seat, int]], output: str) -> float:
        """:param output: the device of the host that has the output layer."""
        first, sum_s = 0, layers_s(self._facts)
        for seat, layers in pieces:
            read = sum(self._reads[first : first + layers])
            first += layers
            sum_s += read * seat.byte_s + seat.fixed_s
        pace = self._host.paces[output]
        sum_s += output_read(self._facts) / pace.bytes_s
        # The engine comes back to the processor for the output, whatever lies there before.
        sum_s += CALIBRATION.graph_s if output == RAM else 0.0
        return sum_s

    def seats(self, lenders: Sequence[Lending]) -> dict[tuple[str, str], Seat]:
        """Every place as `divide` knows it, those of the host too; room as it is there."""
        own = [self._seat(device) for device in (RAM, *self._host.gpus)]
        others = [self._lent(place) for one in lenders for place in one.places]
        return {(seat.node, seat.device): seat for seat in (*own, *others)}

    def _lenders(
        self, lenders: Sequence[Lending], penalties: Mapping[str, float], force: str
    ) -> list[Lender]:
        # A node that has to take part is made so cheap that it always does.
        made = [
            Lender(
                one.node,
                tuple(self._lent(place) for place in one.places),
                penalties[one.node] - (1000.0 if one.node == force else 0.0),
            )
            for one in lenders
        ]
        return sorted(made, key=lambda one: (min(seat.byte_s for seat in one.seats), one.node))

    def _lent(self, place: Offered) -> Seat:
        hop = hop_s(self._facts, place.rtt_s, (place.network_bytes_s, self._host.network_bytes_s))
        return Seat(
            place.node,
            place.device,
            place.room_bytes,
            1 / place.pace.bytes_s,
            CALIBRATION.graph_s + hop,
        )

    def _seat(self, device: str, room_bytes: int = 0) -> Seat:
        byte_s = 1 / self._host.paces[device].bytes_s
        return Seat(self._host.node, device, room_bytes, byte_s, CALIBRATION.graph_s)

    def _ways(self) -> Iterator[tuple[Own, bool]]:
        """How the host's own devices may take part, the likely ways first: whether the engine
        pipelines goes with each.
        """
        host = self._host
        for output in host.gpus:
            shared = output in host.unified
            pool = host.rooms.get(RAM if shared else output, 0)
            for ram_least in (0, 1):
                if ram_least and (shared or any(one in host.unified for one in host.gpus)):
                    continue
                pipelined = ram_least == 0
                left = host.rooms.get(RAM, 0) - self._work.host_bytes(GPU, pipelined=pipelined)
                if left < 0:
                    continue
                room = min(pool, left) if shared else pool
                room -= self._work.output_bytes(pipelined=pipelined)
                others = tuple(
                    self._seat(one, host.rooms.get(one, 0))
                    for one in host.gpus
                    if one != output and one not in host.unified
                )
                ram = self._seat(RAM, self._ram_room(GPU)) if ram_least else None
                yield (
                    Own(ram, ram_least, others, self._seat(output, room)),
                    pipelined,
                )
        left = host.rooms.get(RAM, 0) - self._work.host_bytes(HOST, pipelined=False)
        if left >= 0:
            shared = any(one in host.unified for one in host.gpus)
            ram = None if shared else self._seat(RAM, self._ram_room(HOST))
            yield Own(ram), False

    def _ram_room(self, output: str) -> int:
        """For layers: less what lies in RAM without any, but not less its compute buffer, which is
        the larger one of the two, not their sum.
        """
        return self._host.rooms.get(RAM, 0) - self._work.host_weights(output)

    def _checked(self, pieces: Sequence[tuple[Seat, int]], own: Own) -> Group | None:
        return self.group(
            [(seat.node, seat.device, layers) for seat, layers in pieces],
            {(seat.node, seat.device): seat for seat, _ in pieces},
            own.output.device if own.output is not None else HOST,
        )

    def group(
        self,
        parts: Sequence[tuple[str, str, int]],
        seats: Mapping[tuple[str, str], Seat],
        output: str,
        rooms: Mapping[tuple[str, str], int] | None = None,
    ) -> Group | None:
        """The group that lies so, or None where memory says otherwise.

        :param parts: node, device and layers, in order.
        :param output: a GPU of the host's or `HOST`.
        :param rooms: of the others' devices; as in their seats where it is not told.
        """
        host = self._host
        on_host = sum(
            layers for node, device, layers in parts if (node, device) == (host.node, RAM)
        )
        names = {(node, device): f"{node}/{device}" for node, device, _ in parts}
        devices = [
            (names[node, device], layers)
            for node, device, layers in parts
            if (node, device) != (host.node, RAM)
        ]
        home = output if output == HOST else names.get((host.node, output), "")
        try:
            placement = pipeline(self._facts, on_host, devices, output=home)
        except ValueError:
            return None
        memory = {one.device: one for one in estimate(self._facts, placement, self._work.settings)}
        used: dict[str, int] = {RAM: memory[HOST].engine_bytes}
        pieces = []
        for node, device, layers in parts:
            is_ram = (node, device) == (host.node, RAM)
            taken = memory[HOST if is_ram else names[node, device]]
            pieces.append(Piece(node, device, layers, taken))
            if node != host.node:
                seat_room = seats[node, device].room_bytes
                if taken.engine_bytes > (rooms or {}).get((node, device), seat_room):
                    return None
            elif not is_ram:
                pool = RAM if device in host.unified else device
                used[pool] = used.get(pool, 0) + taken.engine_bytes
        if any(taken > host.rooms.get(pool, 0) for pool, taken in used.items()):
            return None
        token_s = self.token_s(
            [(seats[node, device], layers) for node, device, layers in parts],
            RAM if output == HOST else output,
        )
        return Group(self._shape, tuple(pieces), memory[HOST], token_s)


def _orders(lenders: list[Lender], layers: int) -> Iterator[list[Lender]]:
    """The same lenders and their seats in other orders, so many that it stays quick: all of them
    where layers are few and orders matter, some where a layer more or less is little.
    """
    seats = sum(len(one.seats) for one in lenders)
    most = max(2, _ORDER_STEPS // max(1, layers * seats))
    yield lenders
    yield [replace(one, seats=one.seats[::-1]) for one in lenders[::-1]]
    inner = [[replace(one, seats=order) for order in permutations(one.seats)] for one in lenders]
    others = (list(order) for chosen in product(*inner) for order in permutations(chosen))
    yield from islice(others, 1, most)
