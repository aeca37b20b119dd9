"""What holds for every plan of shards, whatever the counts and whoever takes part."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.experts.ranking import Ranking
from meshd.planner.shard_plan import ShardPlan, shard_plan
from tests.unit.planner_shards.rankings import falling, rankings

Case = tuple[Ranking, dict[str, int], int, int]
NAMES = "abcdef"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A ranking, capacities that hold every expert, how many there are, and groups."""
    groups = draw(st.sampled_from([0, 0, 2, 4]))
    step = groups or 1
    size = draw(st.integers(2, 12 // step + 2))
    count = draw(st.integers(2, 6))
    rooms = [draw(st.integers(1, size - 1)) for _ in range(count)]
    for at in range(count):  # as much more as it takes, node after node
        rooms[at] += max(0, min(size - 1 - rooms[at], size - sum(rooms)))
    capacities = {name: room * step for name, room in zip(NAMES, rooms, strict=False)}
    return draw(rankings(size * step)), capacities, size * step, groups


def planned(case: Case) -> ShardPlan:
    ranking, capacities, experts, groups = case
    plan = shard_plan(ranking, capacities, experts=experts, groups=groups)
    assert plan.problem == ""
    return plan


@given(cases())
def test_every_expert_has_its_homes_and_every_node_its_capacity(case: Case) -> None:
    ranking, capacities, experts, groups = case
    plan = planned(case)
    assert list(plan.selections) == sorted(capacities)
    assert plan.homes in (1, 2)
    for block, counts in enumerate(ranking.counts):
        kept = {node: selection[block] for node, selection in plan.selections.items()}
        if not counts:
            assert set(kept.values()) == {()}
            continue
        for node, ids in kept.items():
            assert list(ids) == sorted(set(ids))
            assert len(ids) == capacities[node]
        homes = [sum(one in ids for ids in kept.values()) for one in range(experts)]
        assert min(homes) >= plan.homes
        if groups:
            size = experts // groups
            for node, ids in kept.items():
                each = [sum(one // size == group for one in ids) for group in range(groups)]
                assert set(each) == {capacities[node] // groups}


@given(cases())
def test_the_core_is_what_was_chosen_most(case: Case) -> None:
    ranking, _, experts, groups = case
    plan = planned(case)
    step = groups or 1
    for block, order in enumerate(ranking.orders):
        if not order:
            assert plan.core[block] == 0
            continue
        size = experts // step
        for group in range(step):
            first = [one for one in order if one // size == group][: plan.core[block] // step]
            for selection in plan.selections.values():
                assert set(first) <= set(selection[block])


@given(cases())
def test_masses_are_those_of_the_selections(case: Case) -> None:
    ranking = case[0]
    plan = planned(case)
    for node, selection in plan.selections.items():
        assert plan.masses[node] == tuple(
            ranking.mass(block, ids) if ids else 1.0 for block, ids in enumerate(selection)
        )
        held = ranking.masses(selection)
        assert plan.mass(node) == pytest.approx(sum(held) / len(held))
        assert plan.least_mass(node) == min(held)


@given(cases(), st.randoms(use_true_random=False))
def test_all_nodes_work_out_the_same(case: Case, rng: random.Random) -> None:
    ranking, capacities, experts, groups = case
    shuffled = list(capacities.items())
    rng.shuffle(shuffled)
    again = shard_plan(
        Ranking(ranking.fingerprint, ranking.calibration, 5, ranking.counts),
        dict(shuffled),
        experts=experts,
        groups=groups,
    )
    assert again == planned(case)


@given(st.integers(0, 10**6), st.sampled_from([16, 32, 64]), st.integers(2, 5), st.data())
def test_more_memory_costs_nobody_a_shard_that_is_worth_less(
    seed: int, experts: int, nodes: int, data: st.DataObject
) -> None:
    """Experts are whole, and a second home may come with the room for it: so much is the most that
    a node which has room for a quarter of them loses; where its own memory grew, half of that.
    """
    ranking = falling(4, experts, seed)
    rooms = st.integers(experts // 4, experts - 2)
    before = {name: data.draw(rooms) for name in NAMES[:nodes]}
    grown = data.draw(st.sampled_from(sorted(before)))
    after = {**before, grown: before[grown] + 1}
    old = shard_plan(ranking, before, experts=experts)
    new = shard_plan(ranking, after, experts=experts)
    if old.problem or new.problem:
        assert old.problem  # the room for one more is never what is missing
        return
    assert new.mass(grown) >= old.mass(grown) - 0.0125
    assert new.worst >= old.worst - 0.0125
    for node in before:
        assert new.mass(node) >= old.mass(node) - 0.025


@given(st.integers(0, 10**6), st.sampled_from([16, 64]), st.data())
def test_nodes_with_the_same_memory_keep_about_the_same(
    seed: int, experts: int, data: st.DataObject
) -> None:
    """Whoever has the worse part of one layer has a better one of another."""
    nodes = data.draw(st.integers(2, 5))
    room = data.draw(st.integers(-(-experts // nodes), experts - 1))
    ranking = falling(8, experts, seed, spread=0.5)
    plan = shard_plan(ranking, dict.fromkeys(NAMES[:nodes], room), experts=experts)
    masses = [plan.mass(node) for node in plan.selections]
    assert max(masses) - min(masses) <= 0.02
