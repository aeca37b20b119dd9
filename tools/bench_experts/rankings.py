"""Other ways to say which experts matter, for comparison: meshd itself ranks each layer alone.

Each makes a ranking, so that everything that works by one (`shard_plan`, `most_chosen`) works by
these too. What a selection keeps is told by the real one's `masses` in any case.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from meshd.experts.ranking import Ranking
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
