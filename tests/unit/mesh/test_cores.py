from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from meshd.mesh.cores import (
    ORPHAN_AFTER_S,
    WANTED,
    Node,
    first_core,
    orphan_wait_s,
    rank,
    reopen_wait_s,
    should_be_core,
)

IDS = [f"node{number:04d}" for number in range(40)]
NODES = st.lists(
    st.builds(Node, st.sampled_from(IDS), st.booleans(), st.booleans()),
    unique_by=lambda node: node.id,
    max_size=30,
)


def decided(nodes: list[Node]) -> list[Node]:
    """Every node as it would be after deciding from the same view."""
    return [Node(node.id, should_be_core(node.id, nodes), node.eligible) for node in nodes]


@given(NODES)
def test_one_round_of_decisions_is_enough_and_then_nothing_moves(nodes: list[Node]) -> None:
    once = decided(nodes)
    assert decided(once) == once


@given(NODES)
def test_there_are_as_many_cores_as_wanted_and_at_most_twice_as_many(nodes: list[Node]) -> None:
    able = sum(node.eligible for node in nodes)
    cores = sum(node.core for node in decided(nodes))
    assert min(WANTED, able) <= cores <= 2 * WANTED


@given(NODES)
def test_who_may_not_or_cannot_be_dialled_is_none(nodes: list[Node]) -> None:
    assert all(node.eligible for node in decided(nodes) if node.core)


@given(NODES, st.sampled_from(IDS))
def test_a_node_that_joins_unseats_nobody(nodes: list[Node], new: str) -> None:
    settled = [node for node in decided(nodes) if node.id != new]
    before = {node.id for node in settled if node.core}
    after = {node.id for node in decided([*settled, Node(new, core=False)]) if node.core}
    assert before <= after


@given(NODES.filter(bool), st.data())
def test_a_core_that_goes_is_replaced_and_the_rest_stay(
    nodes: list[Node], data: st.DataObject
) -> None:
    settled = decided(nodes)
    gone = data.draw(st.sampled_from(settled))
    rest = [node for node in settled if node is not gone]
    before = {node.id for node in rest if node.core}
    after = {node.id for node in decided(rest) if node.core}
    assert before <= after
    assert len(after) >= min(WANTED, sum(node.eligible for node in rest))


def test_all_of_a_small_mesh_are_cores() -> None:
    for size in range(1, WANTED + 1):
        nodes = [Node(node, core=False) for node in IDS[:size]]
        assert all(node.core for node in decided(nodes))


def test_of_a_large_one_that_starts_at_once_five_are() -> None:
    nodes = decided([Node(node, core=False) for node in IDS])
    assert sorted(node.id for node in nodes if node.core) == sorted(sorted(IDS, key=rank)[:WANTED])


def test_orphans_open_one_after_the_other_by_rank() -> None:
    nodes = [Node(node, core=False) for node in IDS]
    waits = [orphan_wait_s(node, nodes) for node in sorted(IDS, key=rank)]
    assert waits[0] == ORPHAN_AFTER_S
    assert waits == sorted(waits)
    assert all(later - sooner >= 1 for sooner, later in itertools.pairwise(waits[:8]))
    assert waits[2 * WANTED] < 20, "a mesh whose cores all died is whole again by then"
    assert all(later - sooner >= 1 for sooner, later in itertools.pairwise(waits[2 * WANTED :]))


def test_exactly_one_core_looks_for_lost_parts() -> None:
    nodes = [Node(node, core=number % 3 == 0) for number, node in enumerate(IDS)]
    assert sum(first_core(node.id, nodes) for node in nodes) == 1
    assert not first_core("nobody", nodes)


def test_cores_reopen_one_after_the_other_and_all_in_time() -> None:
    nodes = [Node(node, core=True) for node in IDS[:5]]
    waits = sorted(reopen_wait_s(node.id, nodes, 6.0) for node in nodes)
    assert waits[0] == 0
    assert all(later - sooner > 1 for sooner, later in itertools.pairwise(waits))
    assert waits[-1] < 6
