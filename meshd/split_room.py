"""What a node has for its part of a split, or for a shard, beside all else that it does. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meshd.config.settings import Config
from meshd.mesh.record import Assignment, MemoryUse, Part, Stage
from meshd.planner.layout import Budgets
from meshd.planner.place import budgets_of
from meshd.planner.plan import Decision
from meshd.planner.view import NodeView

_RUNS = (Stage.LOADING, Stage.READY, Stage.DRAINING)
_NOISE = 16


def rooms_beside(node: NodeView, config: Config, own: Sequence[Assignment]) -> dict[str, Budgets]:
    """What there is for each model that this node runs, beside its others and what it lends.

    :param node: with what it lends.
    """
    left = budgets_of(node, config)
    for lent in node.lent:
        left = less(left, lent.parts)
    running = [one for one in own if one.stage in _RUNS]
    rooms = {}
    for one in running:
        rooms[one.model] = left
        for other in running:
            if other is not one:
                rooms[one.model] = less(rooms[one.model], other.memory)
    return rooms


def room_beside(node: NodeView, config: Config, model: str) -> Budgets:
    """What there is for a model that need not run yet, beside the engines of others that do and
    what this node lends. What only could run takes nothing.
    """
    left = budgets_of(node, config)
    for lent in node.lent:
        left = less(left, lent.parts)
    for running in node.running:
        if running.decision.model != model and (running.resident or running.loading):
            for use in running.decision.memory:
                left = left.less(use.device, use.total_bytes)
    return left


def short(decision: Decision, room: Budgets | None) -> bool:
    """Whether this node has clearly less than its own part of a split takes."""
    if room is None:
        return False
    for use in decision.memory:
        # By so little, free memory moves all the time.
        room = room.less(use.device, -use.total_bytes // _NOISE)
    return not room.hold(decision.memory)


def less(budgets: Budgets, memory: Iterable[MemoryUse | Part]) -> Budgets:
    for use in memory:
        budgets = budgets.less(use.device, use.size_bytes)
    return budgets
