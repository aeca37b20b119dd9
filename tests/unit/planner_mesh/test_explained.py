"""A small mesh, and every word of its plan."""

from __future__ import annotations

from dataclasses import replace

from meshd.mesh.record import Stage
from meshd.mesh.view import Status
from meshd.planner.mesh_plan import MeshPlan
from meshd.planner.replicas import place_replicas
from tests.unit.planner_mesh.meshes import mesh, node, offer, runs, wish


def lines(plan: MeshPlan) -> list[str]:
    told = []
    for placement in plan.placements:
        told.append(f"{placement.model}: {len(placement.replicas)} of {placement.wanted}")
        for replica in placement.replicas:
            stage = replica.stage.value if replica.stage is not None else "to come"
            told.append(f"  on {replica.node}, {stage}: {replica.reason.text}")
        told.extend(
            f"  leaves {release.node} ({release.code}): {release.text}"
            for release in placement.releases
        )
        told.extend(f"  not {one.node} ({one.code}): {one.text}" for one in placement.excluded)
        told.extend(f"  blocked ({one.code}): {one.text}" for one in placement.blockers)
        told.extend(f"  note: {note}" for note in placement.notes)
        if placement.next_step:
            told.append(f"  next: {placement.next_step}")
    told.extend(f"{one.model} leaves {one.node} ({one.code}): {one.text}" for one in plan.orphans)
    return told


def test_the_whole_answer() -> None:
    wishes = [
        wish("chat", least=2),
        wish("code", least=1),
        wish("embed", least=0),
        wish("huge", least=1),
    ]
    failed = replace(runs("code", Stage.FAILED), detail="out of memory while loading")
    view = mesh(
        node("a", offer("chat"), wishes=wishes, running=[runs("chat"), runs("old", gib=1)]),
        node("b", offer("chat"), offer("embed", 4), running=[runs("embed", gib=4)]),
        node("c", offer("code"), running=[failed]),
        node("d", offer("code", speed=5), role="standby"),
        node("e", offer("chat"), status=Status.SUSPECT),
    )
    assert lines(place_replicas(view, {"embed": 4.0})) == [
        "chat: 2 of 2",
        "  on id-a, ready: runs here",
        "  on id-b, to come: asked for by name, at least 2",
        "  not id-e (node-suspect): it has been silent for a moment",
        "  not id-c (not-offered): it does not say that it could serve this model",
        "  not id-d (not-offered): it does not say that it could serve this model",
        "code: 1 of 1",
        "  on id-d, to come: asked for by name, at least 1",
        "  not id-c (failed-here): out of memory while loading",
        "  not id-a (not-offered): it does not say that it could serve this model",
        "  not id-b (not-offered): it does not say that it could serve this model",
        "  not id-e (not-offered): it does not say that it could serve this model",
        "embed: 0 of 1",
        "  leaves id-b (gave-way-to-a-named-model): "
        "chat is asked for by name and lacks its minimum",
        "  not id-a (not-offered): it does not say that it could serve this model",
        "  not id-c (not-offered): it does not say that it could serve this model",
        "  not id-d (not-offered): it does not say that it could serve this model",
        "  not id-e (not-offered): it does not say that it could serve this model",
        "  blocked (not-enough-memory): 1 node could serve it if memory were idle: id-b",
        "  blocked (not-offered): 4 nodes (id-a, id-c, id-d and 1 more): "
        "it does not say that it could serve this model",
        "  next: none: more replicas come when memory is idle",
        "huge: 0 of 1",
        "  not id-a (not-offered): it does not say that it could serve this model",
        "  not id-b (not-offered): it does not say that it could serve this model",
        "  not id-c (not-offered): it does not say that it could serve this model",
        "  not id-d (not-offered): it does not say that it could serve this model",
        "  not id-e (not-offered): it does not say that it could serve this model",
        "  blocked (not-offered): 5 nodes (id-a, id-b, id-c and 2 more): "
        "it does not say that it could serve this model",
        "  next: let a node have the model's file, or fetch it",
        "old leaves id-a (nobody-asks-for-it): no node's configuration names it any more",
    ]
