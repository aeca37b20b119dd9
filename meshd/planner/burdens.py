"""What the nodes of a mesh are needed for beside a split, and what memory is taken. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from meshd.mesh.record import NodeRecord, Stage
from meshd.mesh.view import MeshView, Status
from meshd.planner.seen import Solo, see

# How much slower a split may be for leaving a node to others: the only one that can serve another
# model, the best one for it, one that serves it now, one that stands by.
ONLY_HOME, BEST_HOME, SERVES, STANDS_BY = 0.05, 0.03, 0.03, 0.10

_HOLDS = (Stage.CLAIMED, Stage.LOADING, Stage.READY, Stage.DRAINING)


@dataclass(frozen=True, slots=True)
class Taken:
    """Memory of one node that a model holds, or is the only one to be able to."""

    pool: str
    model: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Burdens:
    """:ivar solos: who can serve what alone, by model.

    :ivar needed: which models need a node, and how much that weighs, by node.
    :ivar taken: memory, by node. :ivar pinned: the only nodes that may have a part, by model.
    """

    solos: Mapping[str, list[Solo]]
    needed: Mapping[str, Mapping[str, float]]
    taken: Mapping[str, list[Taken]]
    pinned: Mapping[str, frozenset[str]]


def burdens(view: MeshView) -> Burdens:
    """All of it for one view."""
    solos: dict[str, list[Solo]] = {}
    taken: dict[str, list[Taken]] = {}
    needed: dict[str, dict[str, float]] = {}
    running: set[str] = set()
    records = {member.id: member.record for member in view.members}
    for member in sorted(view.members, key=lambda one: one.id):
        record = member.record
        if member.status is Status.ALIVE and not record.draining:
            for model, solo in see(record).solos:
                solos.setdefault(model, []).append(solo)
        for one in record.assignments:
            if one.stage not in _HOLDS:
                continue
            running.add(one.model)
            uses = one.memory
            _take(taken, record, one.model, ((use.device, use.size_bytes) for use in uses))
            if one.stage is Stage.READY:
                needed.setdefault(member.id, {})[one.model] = SERVES
            for part in one.parts:
                if part.node != member.id and part.node in records:
                    lender = records[part.node]
                    _take(taken, lender, one.model, ((part.device, part.size_bytes),))
    for model, found in solos.items():
        best = min(found, key=attrgetter("order"))
        share = ONLY_HOME if len(found) == 1 else BEST_HOME
        shares = needed.setdefault(best.node, {})
        shares[model] = max(share, shares.get(model, 0.0))
        if len(found) == 1 and model not in running:
            # What nobody else can serve is as good as there.
            uses = best.memory
            _take(taken, records[best.node], model, ((u.device, u.size_bytes) for u in uses))
    pinned: dict[str, set[str]] = {}
    for record in records.values():
        for model, names in see(record).pins:
            pinned.setdefault(model, set()).update(names)
    return Burdens(
        solos, needed, taken, {model: frozenset(names) for model, names in pinned.items()}
    )


def _take(
    taken: dict[str, list[Taken]],
    record: NodeRecord,
    model: str,
    uses: Iterable[tuple[str, int]],
) -> None:
    pools = see(record).pools
    taken.setdefault(record.id, []).extend(
        Taken(pools.get(device, device), model, size_bytes) for device, size_bytes in uses
    )


def taken_by_others(taken: Iterable[Taken], pool: str, model: str) -> int:
    return sum(one.size_bytes for one in taken if one.pool == pool and one.model != model)
