"""The rankings that the benchmark compares with."""

from __future__ import annotations

import pytest

from meshd.experts.most_chosen import most_chosen
from meshd.planner.shard_plan import shard_plan
from tests.unit.planner_shards.rankings import falling, ranking
from tools.bench_experts.rankings import (
    global_plan,
    global_ranking,
    random_plan,
    random_ranking,
)

TWO = ranking((8, 1, 4, 2), (), (0, 9, 3, 5))


def test_one_ranking_for_all_layers_sums_them() -> None:
    assert global_ranking(TWO).counts == ((8, 10, 7, 7), (), (8, 10, 7, 7))
    plan = global_plan(TWO, {"ann": 3, "bob": 2}, experts=4)
    kept = plan.selections["ann"]
    assert kept[0] == kept[2]
    # It is judged by what the layers really choose, not by the sums.
    assert plan.masses["ann"] == (TWO.mass(0, kept[0]), 1.0, TWO.mass(2, kept[2]))


def test_a_lot_is_the_same_for_the_same_seed() -> None:
    some = falling(3, 16)
    assert random_ranking(some, 1) == random_ranking(some, 1)
    assert random_ranking(some, 1) != random_ranking(some, 2)
    for mixed, counts in zip(random_ranking(some, 1).counts, some.counts, strict=True):
        assert sorted(mixed) == sorted(counts)
        assert mixed != counts


def test_the_ranking_of_each_layer_keeps_most() -> None:
    some, capacities = falling(6, 32), {"ann": 20, "bob": 16, "cid": 16}
    own = shard_plan(some, capacities, experts=32)
    for other in (
        global_plan(some, capacities, experts=32),
        *(random_plan(seed, some, capacities, experts=32) for seed in range(3)),
    ):
        assert other.problem == ""
        for node in capacities:
            assert len(other.selections[node][0]) == capacities[node]
            assert other.mass(node) < own.mass(node)


def test_what_one_node_alone_would_keep() -> None:
    assert most_chosen(TWO, 2) == ((0, 2), (), (1, 3))
    assert most_chosen(TWO, 2, groups=2) == ((0, 2), (), (1, 3))
    assert most_chosen(ranking((9, 8, 1, 0)), 2, groups=2) == ((0, 2),)
    assert most_chosen(TWO, 4) == ((0, 1, 2, 3), (), (0, 1, 2, 3))
    with pytest.raises(ValueError, match="3 experts of each layer, in 2 groups"):
        most_chosen(TWO, 3, groups=2)
    with pytest.raises(ValueError, match="5 experts"):
        most_chosen(TWO, 5)
