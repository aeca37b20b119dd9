"""What the routing table says of shards: from the nodes' records, and of this node's own engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.gateway.answer_quality import quality_said
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target, decode, packed
from meshd.mesh.record import Assignment, NodeRecord
from meshd.mesh_routes import Ways, with_mesh
from meshd.mesh_share import Share
from meshd.quality import Fidelity
from tests.unit.test_mesh_share import Lab, box

MEASURED = (Fidelity("prose", 0.962, 1.031, 0.04),)


def _sharded(record: NodeRecord, model: str) -> NodeRecord:
    def one(assignment: Assignment) -> Assignment:
        if assignment.model != model:
            return assignment
        return replace(assignment, shard="key", measured=MEASURED, experts=12, experts_all=16)

    return replace(record, assignments=tuple(map(one, record.assignments)))


@pytest.fixture
def shared() -> Share:
    """Of a node that serves `a`, beside another one that serves `b`."""
    lab = Lab(box("n1", "a", "b"), box("n2", "a", "b"))
    lab.run(10)
    (here,) = lab.serving("a")
    found = lab.boxes[here].shared
    assert found is not None
    return found


def _routes(shared: Share, own: Target) -> dict[str, Route]:
    alone = RoutingTable(
        node=own.node, routes=(Route("a", ModelState.READY, (own,), quality="min_top1=0.9"),)
    )
    made = with_mesh(alone, shared, Ways(mesh="m", tls="/tls"))
    assert decode(packed(made)) == made
    return {route.model: route for route in made.routes}


def test_shards_are_told_here_and_elsewhere(shared: Share) -> None:
    members = tuple(
        replace(member, record=_sharded(member.record, "b")) for member in shared.view.members
    )
    shared = replace(
        shared,
        record=_sharded(shared.record, "a"),
        view=replace(shared.view, members=members),
    )
    routes = _routes(shared, Target(shared.view.me, "/run/a.sock", ready=True, slots=4))
    for model in "ab":
        (target,) = routes[model].targets
        assert target.weights == f"fp-{model}+key"
        assert not target.whole
        assert quality_said(target).startswith("shard; experts=12/16; top1=0.962")
    # As the whole mesh asks for it.
    assert routes["a"].quality == "exact"


def test_what_the_plan_says_of_this_node_s_engine_goes_before_its_record(shared: Share) -> None:
    own = Target(
        shared.view.me, "/run/a.sock", ready=True, slots=4, shard="newer", experts=8,
        experts_all=16, measured=MEASURED,
    )  # fmt: skip
    for record in (shared.record, _sharded(shared.record, "a")):
        (target,) = _routes(replace(shared, record=record), own)["a"].targets
        assert target == replace(own, weights="fp-a+newer")


def test_whole_models_are_told_as_before(shared: Share) -> None:
    routes = _routes(shared, Target(shared.view.me, "/run/a.sock", ready=True, slots=4))
    for model in "ab":
        (target,) = routes[model].targets
        assert target.whole
        assert target.weights == f"fp-{model}"
