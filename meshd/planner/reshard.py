"""When a node takes another shard than the one it has. Pure; times are monotonic seconds.

A shard is gigabytes written and an hour of measuring, and a plan changes with every node that comes
or goes. What is there is kept unless another would serve noticeably better, or experts are nowhere
that this node would bring back. Whoever changes serves with the old one until the new one is ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshd.experts.ranking import Ranking, Selection
from meshd.planner.shard_plan import ShardPlan

# In answers about as much as one step of the grid of capacities, and more than what one calibration
# text differs from another of its kind.
GAIN = 0.02
# A node that restarts is back by then, and a mesh that is switched on is complete.
CALM_S = 60.0
# The nodes of one mesh then need at most a sixth of an hour for each thing that happens to it.
PAUSE_S = 600.0


@dataclass(frozen=True, slots=True)
class Keep:
    """:ivar waits_s: until the change that is due may be made, 0 when none is.

    :ivar reason: why it is due, "" when it is not.
    """

    reason: str = ""
    waits_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """:ivar selection: to be taken; None where the node has room for no shard any more."""

    reason: str
    selection: Selection | None


@dataclass(frozen=True, slots=True)
class Times:
    """:ivar calm_since_s: when nodes, their capacities or the ranking changed last.

    :ivar changed_s: when this node last took another shard, None for never.
    """

    now_s: float
    calm_since_s: float
    changed_s: float | None = None


def next_selection(
    node: str,
    current: Selection | None,
    wanted: ShardPlan,
    ranking: Ranking,
    *,
    capacity: int,
    others: Mapping[str, Selection | None],
    times: Times,
) -> Keep | Change:
    """Whether this node takes what the plan has for it.

    :param current: of the shard that it has or makes just now, None without one.
    :param ranking: that `wanted` was made by; what `current` was chosen by does not matter.
    :param capacity: experts a layer that the node has room for now.
    :param others: what the other nodes have or make just now; None where that is not known, and
        then no expert is taken to be without a home.
    """
    kept = _kept(current, ranking)
    aim = wanted.selections.get(node)
    if current is not None and kept > capacity:
        # Waiting would not make it fit, and what does not fit does not serve.
        return Change(f"{kept} experts a layer no longer fit, only {capacity} do", aim)
    if aim is None or aim == current:
        return Keep()
    if current is None or not kept:
        reason, first_s = "it has no shard yet", times.now_s
    else:
        reason = _why(node, current, aim, wanted, ranking, others)
        first_s = times.now_s if times.changed_s is None else times.changed_s + PAUSE_S
    if not reason:
        return Keep()
    waits_s = max(times.calm_since_s + CALM_S, first_s) - times.now_s
    return Keep(reason, waits_s) if waits_s > 0 else Change(reason, aim)


def _kept(current: Selection | None, ranking: Ranking) -> int:
    """Experts a layer; 0 of none, or of another model's."""
    if current is None or len(current) != len(ranking.counts):
        return 0
    if any(bool(ids) != bool(counts) for ids, counts in zip(current, ranking.counts, strict=True)):
        return 0
    return max((len(ids) for ids in current), default=0)


def _why(
    node: str,
    current: Selection,
    aim: Selection,
    wanted: ShardPlan,
    ranking: Ranking,
    others: Mapping[str, Selection | None],
) -> str:
    held = ranking.masses(current)
    gain = wanted.mass(node) - sum(held) / len(held)
    if gain >= GAIN:
        return f"it would keep {gain:.3f} more of the routing"
    known = [one for one in others.values() if one is not None]
    if len(known) < len(others):
        return ""
    brought = _homeless(aim, (current, *known))
    return f"{brought} experts have no home that it would be" if brought else ""


def _homeless(aim: Selection, held: Iterable[Selection]) -> int:
    """How many of the experts of `aim` nobody has, over all layers."""
    homes: list[set[int]] = [set() for _ in aim]
    for selection in held:
        # Of another model's nothing is known here.
        if len(selection) == len(homes):
            for home, ids in zip(homes, selection, strict=True):
                home.update(ids)
    return sum(len(set(ids) - home) for ids, home in zip(aim, homes, strict=True))
