"""What one record says, looked up once for as long as it is the same object. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from meshd.mesh.record import MemoryUse, NodeRecord
from meshd.planner.layout import RAM
from meshd.planner.pace import Pace, device_paces
from meshd.planner.plan import Strategy

_SOLO = (Strategy.SOLO_GPU, Strategy.SOLO_OFFLOAD, Strategy.SOLO_CPU)
_SEEN_MOST = 8192


@dataclass(frozen=True, slots=True)
class Place:
    """A device that may hold layers. :ivar pool: the device that its memory is counted on."""

    device: str
    pool: str
    plannable_bytes: int
    pace: Pace


@dataclass(frozen=True, slots=True)
class Solo:
    """How a node would serve a model alone. :ivar order: the best first."""

    node: str
    tokens_s: float
    fingerprint: str
    order: tuple[int, float, str]
    memory: tuple[MemoryUse, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """One record.

    :ivar rtt: ms to other nodes. :ivar pools: devices by the one that their memory is counted on.
    :ivar solos: by model. :ivar pins: models with the only nodes that may run them.
    """

    record: NodeRecord
    rtt: Mapping[str, float]
    pools: Mapping[str, str]
    places: tuple[Place, ...]
    solos: tuple[tuple[str, Solo], ...]
    pins: tuple[tuple[str, tuple[str, ...]], ...]


_seen: dict[str, Seen] = {}


def see(record: NodeRecord) -> Seen:
    kept = _seen.get(record.id)
    if kept is not None and kept.record is record:
        return kept
    rtt = {one.peer: one.median_ms for one in record.rtt if 0 <= one.median_ms < inf}
    pools = {one.id: RAM if one.unified else one.id for one in record.devices}
    plannable = {one.id: one.plannable_bytes for one in record.devices}
    paces = device_paces(record, lent=True)
    # The fastest of those that share it: in what order a record names them says nothing.
    unified = (one.id for one in record.devices if one.unified)
    shared = min(unified, key=lambda device: (-paces[device].bytes_s, device), default=RAM)
    places = sorted(
        (
            Place(one.id, pools[one.id], plannable.get(pools[one.id], 0), paces[one.id])
            for one in record.devices
            if pools[one.id] != RAM or one.id == shared
        ),
        key=lambda place: (place.device == RAM, -place.pace.bytes_s, place.device),
    )
    solos = tuple(
        (
            one.model,
            Solo(
                record.id,
                one.tokens_s,
                one.fingerprint,
                (_SOLO.index(Strategy(one.strategy)), -one.tokens_s, record.id),
                one.memory,
            ),
        )
        for one in record.offers
        if one.strategy in _SOLO and not one.problem
    )
    pins = tuple((one.model, one.nodes) for one in record.wishes if one.nodes)
    seen = Seen(record, rtt, pools, tuple(places), solos, pins)
    if len(_seen) >= _SEEN_MOST:
        _seen.clear()
    _seen[record.id] = seen
    return seen


def places_of(record: NodeRecord) -> tuple[Place, ...]:
    """A node's devices that may hold layers: GPUs, the fastest first, then RAM, unless a GPU has
    its memory there: of the two that share it, the GPU is the faster.
    """
    return see(record).places


def pool_of(record: NodeRecord, device: str) -> str:
    """The device on which a part's memory is counted."""
    return see(record).pools.get(device, device)
