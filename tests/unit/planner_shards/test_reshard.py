"""When a node takes another shard. Three nodes of one model; each has room for six of eight."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.experts.ranking import Ranking, Selection
from meshd.planner.reshard import CALM_S, GAIN, PAUSE_S, Change, Keep, Times, next_selection
from meshd.planner.shard_plan import ShardPlan, shard_plan
from tests.unit.planner_shards.rankings import falling, ranking

RANKING = ranking((4, 30, 2, 10, 20, 8, 10, 16), ())
THREE = {"ann": 5, "bob": 5, "cid": 5}
CALM = Times(now_s=10_000.0, calm_since_s=5_000.0)


def plan(capacities: dict[str, int], by: Ranking = RANKING) -> ShardPlan:
    return shard_plan(by, capacities, experts=8)


def decide(
    node: str,
    current: Selection | None,
    wanted: ShardPlan,
    *,
    by: Ranking = RANKING,
    capacity: int = 5,
    others: dict[str, Selection | None] | None = None,
    times: Times = CALM,
) -> Keep | Change:
    others = dict(wanted.selections) if others is None else others
    others.pop(node, None)
    return next_selection(node, current, wanted, by, capacity=capacity, others=others, times=times)


def test_what_the_plan_says_is_kept() -> None:
    three = plan(THREE)
    for node, selection in three.selections.items():
        assert decide(node, selection, three) == Keep()


def test_the_first_shard_waits_until_the_mesh_is_calm() -> None:
    three = plan(THREE)
    busy = replace(CALM, calm_since_s=CALM.now_s - 20)
    assert decide("ann", None, three, times=busy) == Keep("it has no shard yet", CALM_S - 20)
    assert decide("ann", None, three) == Change("it has no shard yet", three.selections["ann"])


def test_a_node_that_leaves_changes_nothing_where_every_expert_still_has_a_home() -> None:
    """All are on two of the others: the smaller plan would only move them about."""
    steep = ranking((1, 500, 1, 1, 500, 1, 1, 1))
    three = plan({"ann": 6, "bob": 6, "cid": 6}, steep)
    assert three.homes == 2
    two = plan({"ann": 6, "bob": 6}, steep)
    assert two.selections["ann"] != three.selections["ann"]
    left = {"ann": three.selections["ann"], "bob": three.selections["bob"]}
    for node in left:
        said = decide(node, left[node], two, by=steep, capacity=6, others=dict(left))
        assert said == Keep()


def test_an_expert_that_lost_its_home_is_taken_up_by_whom_the_plan_says() -> None:
    """Ann has all but 3, 5 and 6, bob the same: cid was their home. The plan gives them to bob."""
    wanted = ShardPlan(
        selections={"ann": ((0, 1, 2, 4, 7), ()), "bob": ((1, 3, 4, 5, 6), ())},
        core=(2, 0),
        homes=1,
        masses={"ann": (0.72, 1.0), "bob": (0.78, 1.0)},
    )
    had: Selection = ((0, 1, 2, 4, 7), ())
    others: dict[str, Selection | None] = {"ann": had, "bob": ((0, 1, 3, 4, 7), ())}
    assert decide("ann", had, wanted, others=others) == Keep()
    others["ann"] = had  # `decide` took it out
    said = decide("bob", ((0, 1, 3, 4, 7), ()), wanted, others=others)
    assert said == Change("2 experts have no home that it would be", wanted.selections["bob"])


def test_of_a_node_whose_experts_are_not_known_none_is_taken_to_be_lost() -> None:
    wanted = plan({"ann": 5, "bob": 5})
    kept: Selection = ((1, 2, 4, 6, 7), ())
    assert set(wanted.selections["ann"][0]) - set(kept[0])
    known: dict[str, Selection | None] = {"bob": kept}
    assert isinstance(decide("ann", kept, wanted, others=dict(known)), Change)
    assert decide("ann", kept, wanted, others={**known, "cid": None}) == Keep()


def test_a_better_shard_is_taken_and_one_that_is_hardly_better_is_not() -> None:
    three = plan(THREE)
    poor: Selection = ((0, 1, 2, 3, 5), ())
    said = decide("ann", poor, three)
    assert said == Change("it would keep 0.300 more of the routing", three.selections["ann"])
    even = replace(three, masses={**three.masses, "ann": (0.54 + GAIN - 0.001, 1.0)})
    assert decide("ann", poor, even) == Keep()


def test_another_ranking_changes_shards_only_if_it_would_keep_more_by_its_own_counts() -> None:
    three = plan(THREE)
    alike = replace(RANKING, counts=((5, 29, 2, 10, 20, 8, 11, 15), ()))
    other = replace(RANKING, counts=(tuple(reversed(RANKING.counts[0])), ()))
    for node, selection in three.selections.items():
        assert decide(node, selection, plan(THREE, alike), by=alike) == Keep()
        assert isinstance(decide(node, selection, plan(THREE, other), by=other), Change)


def test_one_change_in_ten_minutes() -> None:
    three = plan(THREE)
    poor: Selection = ((0, 1, 2, 3, 5), ())
    soon = replace(CALM, changed_s=CALM.now_s - 100)
    assert decide("ann", poor, three, times=soon) == Keep(
        "it would keep 0.300 more of the routing", PAUSE_S - 100
    )
    later = replace(CALM, changed_s=CALM.now_s - PAUSE_S)
    assert isinstance(decide("ann", poor, three, times=later), Change)


def test_what_does_not_fit_any_more_waits_for_nothing() -> None:
    three = plan({**THREE, "ann": 4})
    busy = Times(now_s=10.0, calm_since_s=9.0, changed_s=9.0)
    had = plan(THREE).selections["ann"]
    assert decide("ann", had, three, capacity=4, times=busy) == Change(
        "5 experts a layer no longer fit, only 4 do", three.selections["ann"]
    )
    nobody = plan({"ann": 4})
    assert nobody.problem
    assert decide("ann", had, nobody, capacity=4, others={}, times=busy) == Change(
        "5 experts a layer no longer fit, only 4 do", None
    )


@pytest.mark.parametrize("capacities", [{"ann": 5}, {"ann": 5, "bob": 8}])
def test_where_nothing_can_be_planned_the_shard_stays(capacities: dict[str, int]) -> None:
    nothing = plan(capacities)
    assert nothing.problem
    assert decide("ann", plan(THREE).selections["ann"], nothing, others={}) == Keep()


@pytest.mark.parametrize("foreign", [(), ((0, 1),), ((), (0, 1, 2, 3, 4)), ((0,), (0,))])
def test_a_shard_of_another_model_is_none(foreign: Selection) -> None:
    three = plan(THREE)
    assert decide("ann", foreign, three) == Change("it has no shard yet", three.selections["ann"])


@given(st.integers(0, 10**6), st.lists(st.integers(5, 15), min_size=3, max_size=6), st.data())
def test_whoever_leaves_every_expert_is_soon_at_home_again_and_then_all_is_still(
    seed: int, rooms: list[int], data: st.DataObject
) -> None:
    by = falling(3, 16, seed)
    capacities = dict(zip("abcdef", rooms, strict=False))
    before = shard_plan(by, capacities, experts=16)
    gone = data.draw(st.sampled_from(sorted(capacities)))
    left = {node: room for node, room in capacities.items() if node != gone}
    after = shard_plan(by, left, experts=16)
    if before.problem or after.problem:
        return
    have: dict[str, Selection | None] = {node: before.selections[node] for node in left}
    lost = any(
        set(range(16)) - {one for own in have.values() if own for one in own[block]}
        for block in range(3)
    )
    changes = 0
    for _ in range(2 * len(left)):
        for node in left:
            others = {name: own for name, own in have.items() if name != node}
            said = next_selection(
                node, have[node], after, by, capacity=left[node], others=others, times=CALM
            )
            if isinstance(said, Change):
                assert said.selection == after.selections[node]
                gained = "more of the routing" in said.reason
                assert gained or "no home" in said.reason
                have[node] = said.selection
                changes += 1
    # Each node changes at most once for one plan, so that nothing swings.
    assert changes <= len(left)
    for block in range(3):
        assert {one for own in have.values() if own for one in own[block]} == set(range(16))
    if not lost:
        for node in left:
            better = after.mass(node) - before.mass(node) >= GAIN - 1e-9
            assert better or have[node] == before.selections[node]
