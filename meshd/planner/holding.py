"""Memory that one replica takes, on all the nodes that it takes any of. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from meshd.mesh.record import MemoryUse, NodeRecord, Part
from meshd.planner.seen import pool_of

Holding = tuple[tuple[str, tuple[MemoryUse, ...]], ...]
"""By node, the host first."""


def holding(
    host: str,
    memory: tuple[MemoryUse, ...],
    parts: Iterable[Part],
    records: Mapping[str, NodeRecord],
) -> Holding:
    """:param memory: of the host. :param records: by id; of who is not there, devices are taken
    for what they are called.
    """
    lent: dict[str, dict[str, int]] = {}
    for part in parts:
        if part.node == host:
            continue
        record = records.get(part.node)
        pool = pool_of(record, part.device) if record is not None else part.device
        sums = lent.setdefault(part.node, {})
        sums[pool] = sums.get(pool, 0) + part.size_bytes
    return (
        (host, memory),
        *((node, tuple(MemoryUse(*one) for one in sums.items())) for node, sums in lent.items()),
    )
