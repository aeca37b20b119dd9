"""Which experts each node keeps, layer by layer: worked out alike by every node, from the ranking
and what each has room for. docs/experts.md tells it with an example. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from meshd.experts.ranking import Ranking, Selection
from meshd.planner.spread import Room, room, spread, together

# Of what it keeps with one home for each expert, how much every node has to keep with two: for so
# little no node takes an expert along when it leaves, and nothing has to be made anew.
_AFFORDED = 0.99


@dataclass(frozen=True)
class ShardPlan:
    """:ivar selections: by node. :ivar core: by block, how many experts are on every node.

    :ivar homes: on so many nodes each expert is, at least.
    :ivar masses: by node and block: share of the choices on the calibration text that it keeps;
        1 in a block without routed experts.
    :ivar problem: why there is no plan, one sentence; then all else is empty.
    """

    selections: Mapping[str, Selection] = field(default_factory=dict)
    core: tuple[int, ...] = ()
    homes: int = 0
    masses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    problem: str = ""

    def mass(self, node: str) -> float:
        """What the node keeps, mean over the layers that have experts."""
        routed = self._routed(node)
        return sum(routed) / len(routed)

    def least_mass(self, node: str) -> float:
        """Likewise in the layer of which it keeps the least."""
        return min(self._routed(node))

    @property
    def worst(self) -> float:
        """The mass of the node that keeps the least."""
        return min(self.mass(node) for node in self.selections)

    def _routed(self, node: str) -> list[float]:
        both = zip(self.masses[node], self.selections[node], strict=True)
        return [mass for mass, ids in both if ids]


def shard_plan(
    ranking: Ranking,
    capacities: Mapping[str, int],
    *,
    experts: int,
    groups: int = 0,
    used: int = 1,
) -> ShardPlan:
    """Divide a model's experts. The order of the nodes does not matter.

    Every expert has two homes if no node then keeps less than 99 % of what it does with one home
    each.

    :param capacities: experts a layer, by node. One that has room for none takes no part; of what
        is no multiple of the groups the rest is left empty.
    :param experts: in each layer that has any. :param groups: of equally many, 0 where the router
        knows none; each node keeps equally many of each. :param used: for a token.
    """
    step = groups or 1
    kept = ((node, capacities[node] // step * step) for node in sorted(capacities))
    rooms = tuple((node, one) for node, one in kept if one > 0)
    problem = _problem(ranking, dict(rooms), experts=experts, step=step, used=used)
    return ShardPlan(problem=problem) if problem else _divided(ranking, rooms, experts, step)


# Every pass of the brain asks for the same again.
@lru_cache(maxsize=32)
def _divided(
    ranking: Ranking, capacities: tuple[tuple[str, int], ...], experts: int, step: int
) -> ShardPlan:
    nodes = tuple(node for node, _ in capacities)
    rooms = tuple(one // step for _, one in capacities)
    once = room(experts // step, rooms, 1)
    assert once is not None  # `_problem` has seen to it
    plan = _planned(ranking, nodes, once, step)
    twice = room(experts // step, rooms, 2)
    if twice is None or _mean(ranking, twice, step) < _AFFORDED * _mean(ranking, once, step):
        return plan  # then some node would lose more
    doubled = _planned(ranking, nodes, twice, step)
    afforded = all(doubled.mass(node) >= _AFFORDED * plan.mass(node) for node in nodes)
    return doubled if afforded else plan


def _problem(
    ranking: Ranking, kept: Mapping[str, int], *, experts: int, step: int, used: int
) -> str:
    if experts < 1 or experts % step:
        return f"its {experts} experts a layer are not in {step} equal groups"
    counted = {len(layer) for layer in ranking.counts} - {0}
    if counted != {experts}:
        of = " or ".join(map(str, sorted(counted))) or "none"
        return f"the ranking is of {of} experts a layer, the model has {experts}"
    if not kept:
        return "no node has room for a part of its experts"
    least, most = min(kept, key=kept.__getitem__), max(kept, key=kept.__getitem__)
    if kept[most] >= experts:
        return f"{most} has room for all {experts} experts: there is nothing to divide"
    if kept[least] < used:
        return f"{least} has room for {kept[least]} experts a layer, and a token uses {used}"
    if sum(kept.values()) < experts:
        return (
            f"the nodes have room for {sum(kept.values())} of {experts} experts a layer, "
            "so that some would have no home"
        )
    return ""


def _planned(ranking: Ranking, nodes: tuple[str, ...], room: Room, step: int) -> ShardPlan:
    kept: list[list[tuple[int, ...]]] = [[] for _ in nodes]
    masses: list[list[float]] = [[] for _ in nodes]
    sums = [0.0] * len(nodes)
    for counts, order in zip(ranking.counts, ranking.orders, strict=True):
        parts = _block(counts, order, room, step)
        total = sum(counts)
        for at, part in enumerate(_evened(parts, room.rooms, sums)):
            ids, mass = parts[part]
            share = mass / total if total else 1.0
            kept[at].append(ids)
            masses[at].append(share)
            sums[at] += share
    return ShardPlan(
        MappingProxyType({node: tuple(own) for node, own in zip(nodes, kept, strict=True)}),
        tuple(room.core * step if counts else 0 for counts in ranking.counts),
        room.homes,
        MappingProxyType({node: tuple(own) for node, own in zip(nodes, masses, strict=True)}),
    )


def _evened(
    parts: Sequence[tuple[tuple[int, ...], int]], rooms: Sequence[int], sums: Sequence[float]
) -> list[int]:
    """Which part each node takes: of those with the same room, who kept least of the layers before
    takes what was chosen most.
    """
    taken = list(range(len(rooms)))
    for size in set(rooms):
        alike = [at for at, one in enumerate(rooms) if one == size]
        by_need = sorted(alike, key=lambda at: (sums[at], at))
        by_mass = sorted(alike, key=lambda at: (-parts[at][1], at))
        for at, part in zip(by_need, by_mass, strict=True):
            taken[at] = part
    return taken


def _mean(ranking: Ranking, room: Room, step: int) -> float:
    """Mass of the mean node, however the experts are dealt."""
    shares = []
    for counts, order in zip(ranking.counts, ranking.orders, strict=True):
        if counts:
            kept = sum(together(ordered, room) for ordered in _by_group(counts, order, step)[1])
            total = sum(counts)
            shares.append(kept / total / len(room.rooms) if total else 1.0)
    return sum(shares) / len(shares)


def _by_group(
    counts: tuple[int, ...], order: tuple[int, ...], step: int
) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Ids and counts of each group, most often chosen first."""
    size = len(counts) // step
    ids = [tuple(one for one in order if one // size == group) for group in range(step)]
    return ids, [[counts[one] for one in own] for own in ids]


def _block(
    counts: tuple[int, ...], order: tuple[int, ...], room: Room, step: int
) -> list[tuple[tuple[int, ...], int]]:
    """By node: the experts of one block that it keeps, ascending, and how often they were chosen.

    Group by group; a node that fared worse in one comes first in the next.
    """
    if not counts:
        return [((), 0) for _ in room.rooms]
    kept: list[list[int]] = [[] for _ in room.rooms]
    masses = [0] * len(room.rooms)
    for ids, ordered in zip(*_by_group(counts, order, step), strict=True):
        for at, ranks in enumerate(spread(ordered, room, masses)):
            kept[at] += [ids[rank] for rank in ranks]
            masses[at] += sum([ordered[rank] for rank in ranks])
    return [(tuple(sorted(own)), mass) for own, mass in zip(kept, masses, strict=True)]
