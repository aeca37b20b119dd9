"""The best split by trying all of them: hosts, devices, orders and layers. Slow and plain.

Speeds are worked out here from the formula of docs/splits.md anew; memory is that of
`planner.memory.estimate`, which the engine's own figures are held against elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, permutations
from math import inf

from meshd.models.facts import GgufFacts
from meshd.planner.fit import Shape
from meshd.planner.kv import ContextSettings
from meshd.planner.memory import estimate
from meshd.planner.placement import HOST, Placement
from tests.unit.planner_splits.boxes import GIB, Box

GRAPH_S = 0.0002
LAYER_S = 0.00002
FILLED = 1024
NETWORK_BYTES_S = 100e6


@dataclass(frozen=True, slots=True)
class Device:
    node: str
    name: str
    pool: str
    room: int
    gb_s: float
    cost_s: float


@dataclass(frozen=True, slots=True)
class Best:
    """:ivar token_s: of the fastest split, inf where none fits."""

    token_s: float
    layers: tuple[tuple[str, str, int], ...] = ()


def best_split(host: Box, boxes: Sequence[Box], facts: GgufFacts, shapes: Sequence[Shape]) -> Best:
    """Of the first shape for which there is any."""
    for shape in shapes:
        found = _best(host, boxes, facts, shape)
        if found.token_s < inf:
            return found
    return Best(inf)


def _best(host: Box, boxes: Sequence[Box], facts: GgufFacts, shape: Shape) -> Best:
    lenders = [
        _devices(box, facts, rtt / 1000)
        for box in boxes
        if box is not host
        and (rtt := min(_known(host, box), default=inf)) <= 80
        and box.engine == host.engine
        and box.role != "client"
        and not box.draining
    ]
    own = _devices(host, facts, 0.0)
    ram = next((device for device in own if device.name == "ram"), None)
    cards = [device for device in own if device.name != "ram"]
    remote = [device for devices in lenders for device in devices]
    best = Best(inf)
    uniform = len(set(facts.layers)) == 1
    reads = [_read(facts, number, shape) for number in range(len(facts.layers))]
    kv = [_kv(facts, number, shape) for number in range(len(facts.layers))]
    for sequence in _sequences(remote, uniform=uniform):
        for ordered in _own_orders(cards):
            for with_ram in (False, True) if ram else (False,):
                head = (ram,) if with_ram and ram else ()
                best = _filled(
                    (*head, *sequence, *ordered), ordered, host, facts, shape, reads, kv, best
                )
    return best


def _sequences(remote: list[Device], *, uniform: bool) -> Iterator[tuple[Device, ...]]:
    for count in range(1, len(remote) + 1):
        for chosen in combinations(remote, count):
            yield from [chosen] if uniform else filter(_together, permutations(chosen))


def _together(devices: tuple[Device, ...]) -> bool:
    """A node's parts stand one after the other."""
    nodes = [device.node for device in devices]
    return sum(1 for one, _ in groupby(nodes)) == len(set(nodes))


def _own_orders(cards: list[Device]) -> Iterator[tuple[Device, ...]]:
    for count in range(len(cards) + 1):
        yield from permutations(cards, count)


def _filled(
    devices: tuple[Device, ...],
    own: tuple[Device, ...],
    host: Box,
    facts: GgufFacts,
    shape: Shape,
    reads: list[float],
    kv: list[int],
    best: Best,
) -> Best:
    """Every way to give each of these devices at least one layer."""
    total = len(facts.layers)
    output = own[-1] if own else None
    gb_s = output.gb_s if output else host.ram_gb_s
    base = (facts.output_bytes + facts.other_bytes) / (gb_s * 1e9) + LAYER_S * total
    base += GRAPH_S if output is None else 0.0
    counts: list[int] = []

    def go(index: int, first: int, token_s: float) -> None:
        nonlocal best
        if token_s >= best.token_s or total - first < len(devices) - index:
            return
        if index == len(devices):
            if first == total and _fits(devices, counts, output, host, facts, shape):
                best = Best(
                    token_s,
                    tuple((d.node, d.name, n) for d, n in zip(devices, counts, strict=True)),
                )
            return
        device = devices[index]
        size, read = 0, 0.0
        for end in range(first + 1, total + 1):
            layer = facts.layers[end - 1]
            size += layer.weight_bytes + kv[end - 1]
            read += reads[end - 1]
            if size > device.room:
                return
            counts.append(end - first)
            go(index + 1, end, token_s + read / (device.gb_s * 1e9) + device.cost_s)
            counts.pop()

    go(0, 0, base)
    return best


def _fits(
    devices: tuple[Device, ...],
    counts: list[int],
    output: Device | None,
    host: Box,
    facts: GgufFacts,
    shape: Shape,
) -> bool:
    names = [
        HOST if (d.node, d.name) == (host.name, "ram") else f"{d.node}:{d.name}" for d in devices
    ]
    given = tuple(name for name in names if name != HOST)
    home = f"{output.node}:{output.name}" if output else HOST
    placement = Placement(
        given,
        tuple(name for name, count in zip(names, counts, strict=True) for _ in range(count)),
        home,
        pipelined=len(given) > 1 and HOST not in names and output is not None,
    )
    settings = ContextSettings(shape.context * shape.slots, shape.slots, op_offload=False)
    taken = {one.device: one.engine_bytes for one in estimate(facts, placement, settings)}
    pools: dict[str, int] = {}
    rooms = {f"{host.name}:ram": int(host.ram_gib * GIB)}
    for device, name in zip(devices, names, strict=True):
        pool = f"{device.node}:{device.pool}"
        if name != HOST:
            pools[pool] = pools.get(pool, 0) + taken[name]
            rooms.setdefault(pool, device.room)
    pools[f"{host.name}:ram"] = pools.get(f"{host.name}:ram", 0) + taken[HOST]
    return all(used <= rooms[pool] for pool, used in pools.items())


def _devices(box: Box, facts: GgufFacts, rtt_s: float) -> list[Device]:
    cost_s = GRAPH_S
    if rtt_s:
        cost_s += rtt_s + 2 * facts.embedding_length * 4 / NETWORK_BYTES_S
    ram = int(box.ram_gib * GIB)
    found = []
    for number, card in enumerate(box.cards, 1):
        room = ram if card.unified else int(card.gib * GIB)
        pool = "ram" if card.unified else f"GPU-{number}"
        found.append(Device(box.name, f"GPU-{number}", pool, room, card.gb_s, cost_s))
    if not any(card.unified for card in box.cards):
        found.append(Device(box.name, "ram", "ram", ram, box.ram_gb_s, cost_s))
    return found


def _known(host: Box, other: Box) -> Iterator[float]:
    for one, peer in ((host, other), (other, host)):
        rtt = one._rtt(peer.name)
        if rtt is not None:
            yield rtt


def _read(facts: GgufFacts, number: int, shape: Shape) -> float:
    layer = facts.layers[number]
    experts = layer.expert_bytes
    active = experts * facts.experts_used // facts.experts if facts.experts else 0
    filled = -(-min(shape.context, FILLED) // 256) * 256
    cached = (layer.key_elements + layer.value_elements) * 2 * filled
    return layer.weight_bytes - experts + active + cached


def _kv(facts: GgufFacts, number: int, shape: Shape) -> int:
    layer = facts.layers[number]
    cells = -(-shape.context // 256) * 256
    return (layer.key_elements + layer.value_elements) * 2 * cells * shape.slots
