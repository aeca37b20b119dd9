"""What a plan of shards looks like, and why there is none."""

from __future__ import annotations

import time

import pytest

from meshd.planner.shard_plan import ShardPlan, shard_plan
from tests.unit.planner_shards.rankings import falling, ranking

# One layer of eight experts; of a hundred choices so many fell on each.
LAYER = (4, 30, 2, 10, 20, 8, 10, 16)


def test_two_nodes_share_the_most_chosen_and_divide_the_rest() -> None:
    """Room for ten, eight experts: two can be on both. They are those that 50 of 100 choices fell
    on; the other six are dealt so that both keep the same.
    """
    plan = shard_plan(ranking(LAYER), {"ann": 5, "bob": 5}, experts=8)
    assert plan == ShardPlan(
        selections={"ann": ((1, 2, 4, 5, 7),), "bob": ((0, 1, 3, 4, 6),)},
        core=(2,),
        homes=1,
        masses={"ann": (0.76,), "bob": (0.74,)},
    )


def test_each_layer_has_a_core_and_a_rest_of_its_own() -> None:
    """And who kept less of the layers before has the better part of the next."""
    other = tuple(reversed(LAYER))
    plan = shard_plan(ranking(LAYER, (), other), {"ann": 5, "bob": 5}, experts=8)
    assert plan.selections["ann"] == ((1, 2, 4, 5, 7), (), (1, 3, 4, 6, 7))
    assert plan.core == (2, 0, 2)
    assert plan.masses == {"ann": (0.76, 1.0, 0.74), "bob": (0.74, 1.0, 0.76)}
    assert plan.mass("ann") == plan.mass("bob") == pytest.approx(0.75)


def test_a_node_with_more_memory_keeps_more_and_a_small_one_what_matters_most() -> None:
    plan = shard_plan(ranking(LAYER), {"big": 7, "small": 3}, experts=8)
    assert plan.selections == {"big": ((0, 1, 2, 3, 4, 5, 6),), "small": ((1, 4, 7),)}
    assert plan.masses == {"big": (0.84,), "small": (0.66,)}
    assert (plan.mass("big"), plan.least_mass("small"), plan.worst) == (0.84, 0.66, 0.66)


def test_two_homes_are_taken_where_they_cost_next_to_nothing() -> None:
    """Six experts are hardly ever chosen: to keep one of them more is no gain."""
    steep = ranking((1, 500, 1, 1, 500, 1, 1, 1))
    plan = shard_plan(steep, {"ann": 6, "bob": 6, "cid": 6}, experts=8)
    assert (plan.homes, plan.core) == (2, (2,))
    for one in range(8):
        assert sum(one in plan.selections[node][0] for node in plan.selections) >= 2
    assert shard_plan(ranking(LAYER), {"ann": 6, "bob": 6, "cid": 6}, experts=8).homes == 1


def test_of_each_group_every_node_keeps_equally_many() -> None:
    """Experts 0 to 3 and 4 to 7 are a group each, as DeepSeek's router has them."""
    plan = shard_plan(ranking(LAYER), {"ann": 6, "bob": 4}, experts=8, groups=2)
    assert plan.selections == {"ann": ((0, 1, 2, 4, 5, 6),), "bob": ((1, 3, 4, 7),)}
    assert plan.core == (2,)
    # What is no multiple of the groups stays empty.
    odd = shard_plan(ranking(LAYER), {"ann": 7, "bob": 5}, experts=8, groups=2)
    assert odd == plan


@pytest.mark.parametrize(
    ("capacities", "words", "problem"),
    [
        ({}, {}, "no node has room for a part of its experts"),
        ({"ann": 0}, {}, "no node has room for a part of its experts"),
        ({"ann": 5}, {}, "the nodes have room for 5 of 8 experts a layer"),
        ({"ann": 3, "bob": 4}, {}, "the nodes have room for 7 of 8 experts a layer"),
        ({"ann": 8, "bob": 4}, {}, "ann has room for all 8 experts: there is nothing to divide"),
        ({"ann": 99, "bob": 4}, {}, "ann has room for all 8 experts"),
        ({"ann": 7, "bob": 1}, {"used": 2}, "bob has room for 1 experts a layer, and a token"),
        ({"ann": 7, "bob": 4}, {"experts": 16}, "the ranking is of 8 experts a layer, the model"),
        ({"ann": 7, "bob": 4}, {"groups": 3}, "its 8 experts a layer are not in 3 equal groups"),
    ],
)
def test_why_there_is_no_plan(
    capacities: dict[str, int], words: dict[str, int], problem: str
) -> None:
    plan = shard_plan(ranking(LAYER), capacities, **{"experts": 8, **words})
    assert plan.problem.startswith(problem)
    assert (plan.selections, plan.core, plan.homes, plan.masses) == ({}, (), 0, {})


@pytest.mark.parametrize("layers", [((),), ((), LAYER, LAYER[:4])])
def test_a_ranking_of_another_model_divides_nothing(layers: tuple[tuple[int, ...], ...]) -> None:
    plan = shard_plan(ranking(*layers), {"ann": 5, "bob": 5}, experts=8)
    assert "the ranking is of" in plan.problem


def test_a_node_without_room_takes_no_part() -> None:
    both = {"ann": 5, "bob": 5}
    assert shard_plan(ranking(LAYER), {**both, "cid": 0}, experts=8) == shard_plan(
        ranking(LAYER), both, experts=8
    )


@pytest.mark.parametrize("count", [0, 7])
def test_where_no_expert_matters_more_all_have_homes_all_the_same(count: int) -> None:
    plan = shard_plan(ranking((count,) * 8), {"ann": 4, "bob": 3, "cid": 3}, experts=8)
    assert {one for own in plan.selections.values() for one in own[0]} == set(range(8))
    assert [len(own[0]) for own in plan.selections.values()] == [4, 3, 3]


def test_nobody_waits_for_the_plan_of_the_largest_models() -> None:
    """Each pass of the brain that finds something changed asks for it."""
    nodes = {f"node-{n}": 64 for n in range(32)}
    best_s = float("inf")
    for seed in range(5):  # another one each time, since the last ones are remembered
        largest = falling(94, 256, seed)
        assert largest.orders
        begun = time.process_time()
        plan = shard_plan(largest, nodes, experts=256)
        best_s = min(best_s, time.process_time() - begun)
        assert plan.homes == 1
    assert best_s < 0.5, f"{best_s:.3f} s"
