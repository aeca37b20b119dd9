"""How many experts of each layer a node has room for. Pure."""

from __future__ import annotations

from bisect import bisect_right
from itertools import takewhile

from meshd.config.settings import Config, ModelSettings
from meshd.models.facts import GgufFacts
from meshd.planner.fit import Shape, shape_memory, shapes
from meshd.planner.layout import Budgets, whole_layouts
from meshd.planner.place import budgets_for
from meshd.planner.plan import Layout
from meshd.planner.shard_facts import least_experts, shard_facts
from meshd.planner.view import NodeView

# Capacities are multiples of such a part of the experts: what other programs take and give back
# then rarely changes one, and with it every node's shard.
_GRID = 16
# Of the memory that may be planned with, what more experts have to leave free: so much may vanish
# again before they no longer fit.
_MARGIN = 0.02


def capacity(
    facts: GgufFacts,
    node: NodeView,
    config: Config,
    model: ModelSettings,
    budgets: Budgets,
    *,
    current: int = 0,
) -> int:
    """The most experts a layer with which a shard fits this node: whole on its GPUs, or in the RAM
    of a node without any; 0 where none does, or none can be made.

    It is laid out with the context of a conversation, or the one asked for, and the fewest slots
    that may be: experts before slots, for what is left out of them is lost to every answer. What
    stands in the way beside memory (a role, no engine) is not looked at.

    :param budgets: of this node (`place.budgets_of`), less what others of its engines need.
    :param current: of the shard that it has. It stays as long as it fits and no larger one fits
        with room to spare, so that memory that comes and goes changes nothing.
    """
    if not facts.moe or facts.undividable:
        return 0
    most = budgets_for(node, config, model, budgets)
    tight = _less(most, node)
    shape = _shape(facts, model)
    counts = _counts(facts)

    def fits(experts: int, within: Budgets) -> bool:
        return _fits(shard_facts(facts, experts), node, shape, within)

    # More experts never take less.
    found = bisect_right(counts, False, key=lambda experts: not fits(experts, tight))
    largest = counts[found - 1] if found else 0
    if largest < current <= facts.experts and fits(current, most):
        return current
    return largest


def _counts(facts: GgufFacts) -> tuple[int, ...]:
    """How many a shard may have, rising."""
    step = facts.expert_groups or 1
    grid = -(-facts.experts // _GRID // step) * step
    least = -(-least_experts(facts) // grid) * grid
    return (*range(least, facts.experts, grid), facts.experts)


def _shape(facts: GgufFacts, model: ModelSettings) -> Shape:
    """Of the shapes that the best context has, the one that takes least."""
    tried = tuple(shapes(facts, model, modest=True))
    return tuple(takewhile(lambda shape: shape.context == tried[0].context, tried))[-1]


def _less(budgets: Budgets, node: NodeView) -> Budgets:
    for device in (*(gpu.id for gpu in node.gpus if not gpu.unified), "ram"):
        budgets = budgets.less(device, round(max(0, budgets.free(device)) * _MARGIN))
    return budgets


def _fits(facts: GgufFacts, node: NodeView, shape: Shape, budgets: Budgets) -> bool:
    layouts = whole_layouts(facts, node.gpus, budgets) if node.gpus else (Layout(),)
    return any(budgets.hold(shape_memory(facts, layout, shape)) for layout in layouts)
