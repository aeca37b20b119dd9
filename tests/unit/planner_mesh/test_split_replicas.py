"""Splits in the mesh's plan: memory of several nodes, and which host is the best."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.mesh.record import Assignment, DeviceRecord, MemoryUse, Offer, Part, Stage
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.claims import Own, next_claims
from meshd.planner.eligible import eligible, mesh_of
from meshd.planner.plan import Code, Strategy
from meshd.planner.ranking import rank
from meshd.planner.replicas import place_replicas
from meshd.planner.wishes import wanted
from tests.unit.planner_mesh.meshes import GIB, applied, mesh, node, offer, runs, where, wish

BIG = [wish("big")]


def split_offer(
    host: str,
    *members: str,
    gib: float = 6,
    speed: float = 10.0,
    code: str = "",
    model: str = "big",
) -> Offer:
    """The host's card and one of every member's."""
    parts = tuple(Part(f"id-{one}", "GPU-1", 10, int(gib * GIB)) for one in (*members, host))
    uses = (MemoryUse("GPU-1", int(gib * GIB)), MemoryUse("ram", GIB // 2))
    return Offer(
        model, f"content-{model}", Strategy.PIPELINE, 8192, 1, uses, speed, code=code, parts=parts
    )


def split_runs(host: str, *members: str, stage: Stage = Stage.READY, gib: float = 6) -> Assignment:
    made = split_offer(host, *members, gib=gib)
    return Assignment(
        "big", made.fingerprint, stage, 1, 8192, 1, made.memory, settled=True, parts=made.parts
    )


def test_a_split_runs_on_its_host_and_says_its_parts() -> None:
    view = mesh(node("a", split_offer("a", "b"), wishes=BIG), node("b"))
    placement = place_replicas(view, {}).placement("big")
    assert placement is not None
    (replica,) = placement.replicas
    assert replica.node == "id-a"
    assert [part.node for part in replica.parts] == ["id-b", "id-a"]


def test_a_members_memory_is_taken_from_what_others_may_use() -> None:
    wishes = [*BIG, wish("m")]
    view = mesh(
        node("a", split_offer("a", "b"), wishes=wishes, running=[split_runs("a", "b")]),
        node("b", offer("m", 6), gpus=(8,)),
    )
    assert where(place_replicas(view, {}), "m") == []
    roomy = replace(view, members=(view.members[0], node("b", offer("m", 6), gpus=(14,))))
    assert where(place_replicas(roomy, {}), "m") == ["b"]


def test_parts_are_not_moved_to_another_device() -> None:
    busy = runs("m", gib=6)
    wishes = [*BIG, wish("m")]
    view = mesh(
        node("a", split_offer("a", "b"), wishes=wishes),
        node("b", offer("m"), gpus=(8, 8), running=[busy]),
    )
    assert where(place_replicas(view, {}), "big") == []


@pytest.mark.parametrize(
    "member",
    [node("b", status=Status.SUSPECT), node("b", draining=True), node("c")],
    ids=["suspect", "draining", "gone"],
)
def test_a_split_whose_member_is_not_there_is_not_placed(member: MemberView) -> None:
    view = mesh(node("a", split_offer("a", "b"), wishes=BIG), member)
    assert where(place_replicas(view, {}), "big") == []


def test_a_split_that_runs_stays_when_a_member_is_missed() -> None:
    view = mesh(
        node("a", split_offer("a", "b"), wishes=BIG, running=[split_runs("a", "b")]), node("c")
    )
    assert where(place_replicas(view, {}), "big") == ["a"]


def test_of_two_hosts_the_faster_one_is_taken_by_two_per_cent() -> None:
    view = mesh(
        node("a", split_offer("a", "b", speed=10.0), wishes=BIG),
        node("b", split_offer("b", "a", speed=10.3)),
    )
    assert where(place_replicas(view, {}), "big") == ["b"]


def order_of(*members: MemberView) -> list[str]:
    view = mesh(*members)
    (asked,) = wanted(view)
    known = mesh_of(view).known
    found = sorted(known, key=lambda one: rank(asked, known[one]))
    assert set(eligible(asked, mesh_of(view)).nodes) == set(found)
    return [one.removeprefix("id-") for one in found]


def solo(strategy: Strategy, speed: float) -> Offer:
    return replace(offer("big", speed=speed), strategy=strategy)


def test_whole_on_gpus_before_splits_before_layers_in_ram_before_slower_splits() -> None:
    assert order_of(
        node("a", split_offer("a", "b", speed=1.0, code=Code.SOLO_FASTER), wishes=BIG),
        node("b", solo(Strategy.SOLO_OFFLOAD, 2.0)),
        node("c", split_offer("c", "b", speed=3.0)),
        node("d", solo(Strategy.SOLO_GPU, 1.0)),
    ) == ["d", "c", "b", "a"]


def test_of_those_with_layers_in_ram_the_faster_comes_first() -> None:
    assert order_of(
        node("a", solo(Strategy.SOLO_OFFLOAD, 2.0), wishes=BIG),
        node("b", solo(Strategy.SOLO_CPU, 9.0)),
        node("c", solo(Strategy.SOLO_OFFLOAD, 9.0)),
    ) == ["c", "b", "a"]


def test_a_popular_model_gives_way_on_a_member_and_its_node_is_told() -> None:
    popular = wish("m", least=0)
    view = mesh(
        node("a", split_offer("a", "b"), wishes=[*BIG, popular]),
        node("b", offer("m"), running=[runs("m")], gpus=(8,)),
    )
    plan = place_replicas(view, {"m": 3.0})
    assert where(plan, "big") == ["a"]
    placement = plan.placement("m")
    assert placement is not None
    (release,) = placement.releases
    assert (release.node, release.code, release.in_favour_of) == ("id-b", Code.GAVE_WAY, "big")


def claimed(view: MeshView, name: str, model: Assignment) -> MeshView:
    members = tuple(
        replace(one, record=replace(one.record, assignments=(model,)))
        if one.id == f"id-{name}"
        else one
        for one in view.members
    )
    return replace(view, members=members)


def test_what_gives_way_to_another_nodes_split_goes_once_that_is_claimed_and_the_host_waits() -> (
    None
):
    popular = wish("m", least=0)
    view = mesh(
        node("a", split_offer("a", "b"), wishes=[*BIG, popular]),
        node("b", offer("m"), running=[runs("m")], gpus=(8,)),
    )
    serving = [Own(runs("m"), 1000.0)]
    before = next_claims(place_replicas(view, {"m": 3.0}), "id-b", serving, calm_s=100.0)
    assert before.assignments[0].stage is not Stage.DRAINING
    claim = split_runs("a", "b", stage=Stage.CLAIMED)
    plan = place_replicas(claimed(view, "a", claim), {"m": 3.0})
    told = next_claims(plan, "id-b", serving, calm_s=100.0)
    assert told.assignments[0].stage is Stage.DRAINING
    waiting = next_claims(plan, "id-a", [Own(claim, 50.0)], calm_s=100.0)
    assert waiting.assignments[0].stage is Stage.CLAIMED
    gone = claimed(claimed(view, "a", claim), "b", replace(runs("m"), stage=Stage.DRAINING))
    plan = place_replicas(gone, {"m": 3.0})
    (started,) = next_claims(plan, "id-a", [Own(claim, 50.0)], calm_s=100.0).assignments
    assert started.stage is Stage.LOADING


def test_a_new_claim_carries_the_parts() -> None:
    view = mesh(node("a", split_offer("a", "b"), wishes=BIG), node("b"))
    (claim,) = next_claims(place_replicas(view, {}), "id-a", [], calm_s=100.0).assignments
    assert claim.stage is Stage.CLAIMED
    assert [part.node for part in claim.parts] == ["id-b", "id-a"]


def test_a_unified_cards_part_is_taken_from_the_ram() -> None:
    unified = node("b", ram_gib=20, gpus=())
    card = DeviceRecord("GPU-1", "GB10", 20 * GIB, 20 * GIB, 0, unified=True)
    record = replace(unified.record, devices=(card, *unified.record.devices))
    wishes = [*BIG, wish("m")]
    in_ram = Offer("m", "content-m", Strategy.SOLO_CPU, 8192, 1, (MemoryUse("ram", 15 * GIB),), 5.0)
    for left, found in ((6.0, []), (4.0, ["b"])):
        view = mesh(
            node("a", split_offer("a", "b", gib=left), wishes=wishes),
            replace(unified, record=replace(record, offers=(in_ram,))),
        )
        assert where(place_replicas(view, {}), "m") == found


def test_two_splits_do_not_share_a_card() -> None:
    wishes = [wish("big"), wish("other")]
    other = split_offer("a", "b", model="other")
    view = mesh(node("a", split_offer("a", "b"), other, wishes=wishes), node("b"))
    view = applied(view, place_replicas(view, {}))
    held = {model for model in ("big", "other") if where(place_replicas(view, {}), model)}
    assert held == {"big"}
