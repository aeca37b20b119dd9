"""Other ways to say which experts matter, for comparison: meshd itself ranks each layer alone.

Each makes a ranking, so that everything that works by one (`shard_plan`, `most_chosen`) works by
these too. What a selection keeps is told by the real one's `masses` in any case.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from meshd.experts.ranking import Ranking, Selection
from meshd.planner.shard_plan import ShardPlan, shard_plan


def global_ranking(ranking: Ranking) -> Ranking:
    """One for all layers, as mesh-llm had it: choices of the expert of that number, summed."""
    routed = [counts for counts in ranking.counts if counts]
    summed = tuple(map(sum, zip(*routed, strict=True)))
    return replace(ranking, counts=tuple(summed if counts else () for counts in ranking.counts))


def random_ranking(ranking: Ranking, seed: int) -> Ranking:
    """The same counts in each layer, of experts drawn by lot."""
    rng = random.Random(seed)
    return replace(
        ranking, counts=tuple(tuple(rng.sample(counts, len(counts))) for counts in ranking.counts)
    )


def most_chosen(ranking: Ranking, experts: int, groups: int = 0) -> Selection:
    """What one node alone would keep with room for so many of each layer.

    :raises ValueError: the groups cannot have equally many of them, or a layer has not so many.
    """
    step = groups or 1
    if experts % step or any(counts and len(counts) < experts for counts in ranking.counts):
        raise ValueError(f"{experts} experts of each layer, in {step} groups")
    return tuple(_most(order, experts // step, step) for order in ranking.orders)


def _most(order: tuple[int, ...], each: int, step: int) -> tuple[int, ...]:
    size = len(order) // step
    groups = ([one for one in order if one // size == group] for group in range(step))
    return tuple(sorted(one for group in groups for one in group[:each])) if order else ()


def global_plan(
    ranking: Ranking, capacities: Mapping[str, int], *, experts: int, groups: int = 0
) -> ShardPlan:
    """The plan by one ranking for all layers: the same core and the same rest in each."""
    return _plan_by(global_ranking(ranking), ranking, capacities, experts, groups)


def random_plan(
    seed: int, ranking: Ranking, capacities: Mapping[str, int], *, experts: int, groups: int = 0
) -> ShardPlan:
    """The plan by lot."""
    return _plan_by(random_ranking(ranking, seed), ranking, capacities, experts, groups)


def _plan_by(
    chosen_by: Ranking, real: Ranking, capacities: Mapping[str, int], experts: int, groups: int
) -> ShardPlan:
    """:return: with the masses that its selections really keep."""
    plan = shard_plan(chosen_by, capacities, experts=experts, groups=groups)
    masses = {
        node: tuple(real.mass(block, ids) if ids else 1.0 for block, ids in enumerate(selection))
        for node, selection in plan.selections.items()
    }
    return replace(plan, masses=masses)
