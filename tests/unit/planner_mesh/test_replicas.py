from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.mesh.record import MemoryUse, RttRecord, Stage
from meshd.mesh.view import Status
from meshd.planner.mesh_plan import duties, releases
from meshd.planner.plan import Code, Strategy
from meshd.planner.replicas import place_replicas
from tests.unit.planner_mesh.meshes import GIB, applied, mesh, node, offer, runs, where, wish

M = [wish("m")]


def test_a_model_goes_to_the_fastest_node() -> None:
    view = mesh(
        node("a", offer("m", speed=20), wishes=M), node("b", offer("m", speed=80), wishes=M)
    )
    plan = place_replicas(view, {})
    (replica,) = plan.placements[0].replicas
    assert replica.node == "id-b"
    assert replica.stage is None
    assert replica.reason.code is Code.MINIMUM
    assert duties(plan, "id-b") == ("m",)
    assert duties(plan, "id-a") == ()


def test_a_whole_gpu_comes_before_a_faster_split_with_ram() -> None:
    split = replace(offer("m", speed=80), strategy=Strategy.SOLO_OFFLOAD)
    view = mesh(node("a", split, wishes=M), node("b", offer("m", speed=20), wishes=M))
    assert where(place_replicas(view, {}), "m") == ["b"]


def test_what_runs_stays_though_a_better_node_came() -> None:
    view = mesh(
        node("a", offer("m", speed=5), wishes=M, running=[runs("m")]),
        node("b", offer("m", speed=500), wishes=M),
    )
    plan = place_replicas(view, {})
    assert where(plan, "m") == ["a"]
    assert plan.placements[0].replicas[0].reason.code is Code.KEPT


def test_a_node_that_asks_for_it_comes_before_one_that_does_not() -> None:
    for asking in "ab":
        members = [node(n, offer("m"), wishes=M if n == asking else ()) for n in "ab"]
        assert where(place_replicas(mesh(*members), {}), "m") == [asking]


def test_models_spread_over_equal_nodes() -> None:
    models = [f"m{i}" for i in range(4)]
    wishes = [wish(m) for m in models]
    members = [node(n, *(offer(m, 1) for m in models), wishes=wishes, gpus=(24,)) for n in "abcd"]
    plan = place_replicas(mesh(*members), {})
    assert sorted(where(plan, m)[0] for m in models) == ["a", "b", "c", "d"]


def test_of_equals_the_nearer_one() -> None:
    def at(name: str, median_ms: float) -> object:
        one = node(name, offer("m"), wishes=M)
        rtt = (RttRecord("peer", 0.1, median_ms, 99.0),)
        return replace(one, record=replace(one.record, rtt=rtt))

    for near in "ab":
        members = [at(n, 1.0 if n == near else 30.0) for n in "ab"]
        assert where(place_replicas(mesh(*members), {}), "m") == [near]  # type: ignore[arg-type]


def test_memory_is_shared_out_device_by_device_and_gpus_are_interchangeable() -> None:
    wishes = [wish(f"m{i}") for i in range(3)]
    one = node("a", *(offer(f"m{i}", 6) for i in range(3)), wishes=wishes, gpus=(8, 7))
    plan = place_replicas(mesh(one), {})
    assert [len(p.replicas) for p in plan.placements] == [1, 1, 0]
    devices = [p.replicas[0].memory[0].device for p in plan.placements[:2]]
    assert sorted(devices) == ["GPU-1", "GPU-2"]
    missing = plan.placements[2]
    assert missing.blockers[0].code is Code.NO_MEMORY
    assert "a" in missing.blockers[0].text
    assert "free memory" in missing.next_step


def test_ram_counts_too() -> None:
    one = node("a", offer("m", 2), offer("n", 2), wishes=[*M, wish("n")], ram_gib=0.75)
    assert [len(p.replicas) for p in place_replicas(mesh(one), {}).placements] == [1, 0]


def test_what_lies_on_two_gpus_is_not_moved() -> None:
    both = (MemoryUse("GPU-1", 5 * GIB), MemoryUse("GPU-2", 5 * GIB))
    wide = replace(offer("m"), memory=both)
    fits = node("a", wide, wishes=M, gpus=(6, 6))
    not_there = node("a", wide, wishes=M, gpus=(6, 4, 12))
    assert where(place_replicas(mesh(fits), {}), "m") == ["a"]
    assert where(place_replicas(mesh(not_there), {}), "m") == []


def test_first_every_model_once_then_the_second_replicas() -> None:
    wishes = [wish("m", least=2), wish("n", least=1)]
    members = [node(n, offer("m"), offer("n"), wishes=wishes) for n in "ab"]
    plan = place_replicas(mesh(*members), {})
    assert len(where(plan, "m")) == 1
    assert len(where(plan, "n")) == 1


def test_clients_pins_and_other_content_are_excluded_with_their_reasons() -> None:
    other = replace(offer("m"), fingerprint="something-else")
    cannot = replace(
        offer("m"), strategy=Strategy.WAIT, code=Code.NO_MEMORY, problem="needs 6 GiB, has 2"
    )
    wishes = [wish("m", nodes=("a", "id-b", "c", "e", "f"))]
    view = mesh(
        node("a", offer("m"), wishes=wishes),
        node("b", offer("m", speed=90), wishes=wishes),
        node("c", other),
        node("d", offer("m")),
        node("e", cannot),
        node("f"),
        node("g", offer("m"), role="client"),
    )
    placement = place_replicas(view, {}).placements[0]
    assert [replica.node for replica in placement.replicas] == ["id-b"]
    assert placement.fingerprint == "content-m"
    excluded = {one.node: (one.code, one.text) for one in placement.excluded}
    assert excluded["id-c"][0] is Code.OTHER_CONTENT
    assert excluded["id-d"][0] is Code.NOT_PINNED
    assert excluded["id-e"] == (Code.NO_MEMORY, "needs 6 GiB, has 2")
    assert excluded["id-f"][0] is Code.NOT_OFFERED
    assert excluded["id-g"][0] is Code.ROLE
    assert "1 of 3 nodes hold other content" in placement.notes[0]


def test_what_a_name_means_is_for_those_to_say_who_use_it() -> None:
    same_name = replace(offer("m", speed=500), fingerprint="something-else")
    cannot = replace(offer("m"), strategy=Strategy.WAIT, code=Code.NO_MEMORY, problem="too large")
    members = [node("b", same_name), node("c", same_name)]
    plan = place_replicas(mesh(node("a", offer("m"), wishes=M), *members), {})
    assert where(plan, "m") == ["a"]
    # Nobody serves something else under its name, also where its own node cannot serve it.
    for names_it in (node("a", cannot, wishes=M), node("a", cannot, wishes=M, status=Status.DEAD)):
        alive = [one for one in (names_it, *members) if one.status is Status.ALIVE]
        dead = tuple(one.record for one in (names_it,) if one.status is Status.DEAD)
        (placement,) = place_replicas(replace(mesh(*alive), dead=dead), {}).placements
        assert placement.replicas == ()
        assert {one.code for one in placement.excluded} >= {Code.OTHER_CONTENT}


def test_a_standby_helps_only_where_nobody_else_can() -> None:
    slow, spare = offer("m", speed=5), offer("m", speed=500)
    view = mesh(node("a", slow, wishes=M), node("s", spare, wishes=M, role="standby"))
    assert where(place_replicas(view, {}), "m") == ["a"]
    alone = mesh(node("a", wishes=M), node("s", spare, wishes=M, role="standby"))
    assert where(place_replicas(alone, {}), "m") == ["s"]


def test_a_suspects_replica_still_counts_until_it_is_dead() -> None:
    gone = node("a", offer("m"), wishes=M, running=[runs("m")], status=Status.SUSPECT)
    spare = node("s", offer("m"), wishes=M)
    assert where(place_replicas(mesh(gone, spare), {}), "m") == ["a"]
    assert where(place_replicas(mesh(spare), {}), "m") == ["s"]


def test_nothing_new_goes_to_a_suspect() -> None:
    view = mesh(node("a", offer("m"), wishes=M, status=Status.SUSPECT))
    placement = place_replicas(view, {}).placements[0]
    assert placement.replicas == ()
    assert placement.blockers[0].code is Code.SUSPECT


def test_a_failed_node_is_passed_over_and_the_next_one_takes_it() -> None:
    failed = replace(runs("m", Stage.FAILED), detail="out of memory while loading")
    view = mesh(
        node("a", offer("m", speed=90), wishes=M, running=[failed]),
        node("b", offer("m", speed=5), wishes=M),
    )
    placement = place_replicas(view, {}).placements[0]
    assert [replica.node for replica in placement.replicas] == ["id-b"]
    assert placement.excluded[0].text == "out of memory while loading"


def test_what_nobody_asks_for_any_more_is_given_back() -> None:
    view = mesh(node("a", offer("m"), running=[runs("m", settled=False)]))
    plan = place_replicas(view, {})
    assert plan.placements == ()
    (release,) = releases(plan, "id-a")
    assert (release.model, release.code) == ("m", Code.NOT_ASKED_FOR)


def test_a_replica_outside_its_pins_stays_until_another_answers() -> None:
    wishes = [wish("m", nodes=("b",))]
    wrong = node("a", offer("m"), wishes=wishes, running=[runs("m")])
    right = node("b", offer("m"), wishes=wishes)
    view = mesh(wrong, right)
    plan = place_replicas(view, {})
    assert where(plan, "m") == ["b", "a"]
    assert releases(plan, "id-a") == ()
    after = place_replicas(applied(view, plan), {})
    assert [release.code for release in releases(after, "id-a")] == [Code.MISPLACED]
    assert where(after, "m") == ["b"]


def test_a_replica_outside_its_pins_goes_at_once_where_no_other_can_come() -> None:
    wishes = [wish("m", nodes=("elsewhere",))]
    plan = place_replicas(mesh(node("a", offer("m"), wishes=wishes, running=[runs("m")])), {})
    assert [release.code for release in releases(plan, "id-a")] == [Code.MISPLACED]


def test_a_hot_model_gains_one_at_a_time_while_memory_is_idle() -> None:
    view = mesh(*(node(n, offer("m"), wishes=M) for n in "abc"))
    counts = []
    for _ in range(5):
        plan = place_replicas(view, {"m": 25.0})
        view = applied(view, plan)
        counts.append(len(where(plan, "m")))
    assert counts == [1, 2, 3, 3, 3]


def test_a_crowd_that_waits_for_a_load_causes_no_second_one() -> None:
    wishes = [wish("m", least=0)]
    others = [node(n, offer("m"), wishes=wishes) for n in "bc"]
    for stage, replicas in ((Stage.LOADING, 1), (Stage.READY, 2)):
        view = mesh(node("a", offer("m"), wishes=wishes, running=[runs("m", stage)]), *others)
        assert len(where(place_replicas(view, {"m": 500.0}), "m")) == replicas
    # What the configuration asks for does not wait for it.
    named = [wish("m", least=2)]
    view = mesh(
        node("a", offer("m"), wishes=named, running=[runs("m", Stage.LOADING)]),
        *(node(n, offer("m"), wishes=named) for n in "bc"),
    )
    assert len(where(place_replicas(view, {"m": 500.0}), "m")) == 2


def test_demand_by_an_alias_is_demand_for_the_model() -> None:
    wishes = [wish("m", aliases=("x",))]
    view = mesh(*(node(n, offer("m"), wishes=wishes) for n in "ab"))
    view = applied(view, place_replicas(view, {}))
    assert len(where(place_replicas(view, {"x": 25.0}), "m")) == 2


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -5.0])
def test_absurd_demand_is_none(rate: float) -> None:
    view = mesh(*(node(n, offer("m"), wishes=M) for n in "ab"))
    view = applied(view, place_replicas(view, {}))
    assert len(where(place_replicas(view, {"m": rate}), "m")) == 1


def test_a_cold_model_gives_back_the_worst_and_only_when_it_is_time() -> None:
    def world(*, settled: bool) -> object:
        return mesh(
            node("a", offer("m", speed=90), wishes=M, running=[runs("m")]),
            node("b", offer("m", speed=5), wishes=M, running=[runs("m", settled=settled)]),
        )

    young = place_replicas(world(settled=False), {})  # type: ignore[arg-type]
    assert young.placements[0].releases == ()
    assert "2 run, 1 wanted" in young.placements[0].notes[0]
    old = place_replicas(world(settled=True), {})  # type: ignore[arg-type]
    assert [release.node for release in old.placements[0].releases] == ["id-b"]
    assert where(old, "m") == ["a"]


def test_the_last_that_answers_never_goes() -> None:
    loading = runs("m", Stage.LOADING, settled=True)
    view = mesh(
        node("a", offer("m"), wishes=M, running=[loading]),
        node("b", offer("m"), wishes=M, running=[loading]),
    )
    assert place_replicas(view, {}).placements[0].releases == ()


def test_a_suspect_is_not_who_the_others_leave_it_to() -> None:
    view = mesh(
        node("a", offer("m"), wishes=M, running=[runs("m")]),
        node("b", offer("m"), wishes=M, running=[runs("m")], status=Status.SUSPECT),
    )
    assert place_replicas(view, {}).placements[0].releases == ()


def test_on_demand_only_comes_with_the_first_request_and_goes_when_it_is_forgotten() -> None:
    wishes = [wish("m", least=0)]
    idle = mesh(node("a", offer("m"), wishes=wishes))
    assert where(place_replicas(idle, {}), "m") == []
    assert place_replicas(idle, {}).placements[0].blockers == ()
    asked = place_replicas(idle, {"m": 0.69})
    assert where(asked, "m") == ["a"]
    view = applied(idle, asked)
    assert where(place_replicas(view, {"m": 0.1}), "m") == ["a"]
    assert where(place_replicas(view, {"m": 0.001}), "m") == []
    young = applied(idle, asked, settled=False)
    assert where(place_replicas(young, {"m": 0.001}), "m") == ["a"]


def test_what_is_only_popular_gives_way_to_a_named_model_that_lacks_its_minimum() -> None:
    wishes = [wish("popular", least=0), wish("named")]
    view = mesh(
        node("a", offer("popular"), offer("named"), wishes=wishes, running=[runs("popular")])
    )
    plan = place_replicas(view, {"popular": 1000.0})
    assert where(plan, "named") == ["a"]
    (release,) = releases(plan, "id-a")
    assert release.code is Code.GAVE_WAY
    assert release.in_favour_of == "named"
    assert where(plan, "popular") == []


def test_a_second_replica_is_only_popular_and_the_first_is_not() -> None:
    wishes = [wish("m"), wish("n")]
    one = node("a", offer("m"), offer("n"), wishes=wishes, running=[runs("m")])
    two = node("b", offer("m"), offer("n"), wishes=wishes, running=[runs("m")])
    plan = place_replicas(mesh(one, two), {"m": 1000.0})
    assert len(where(plan, "m")) == 1
    assert len(where(plan, "n")) == 1
    only = mesh(replace(one, record=replace(one.record, wishes=tuple(wishes))))
    plan = place_replicas(only, {"n": 1e6})
    assert where(plan, "m") == ["a"]
    assert where(plan, "n") == []
    assert plan.placements[0].releases == ()


def test_nobody_gives_way_in_vain() -> None:
    wishes = [wish("popular", least=0), wish("huge")]
    one = node(
        "a",
        offer("popular"),
        offer("huge", 60),
        wishes=wishes,
        running=[runs("popular")],
    )
    plan = place_replicas(mesh(one), {"popular": 5.0})
    assert where(plan, "popular") == ["a"]
    assert releases(plan, "id-a") == ()


def test_a_hot_model_never_evicts_another() -> None:
    wishes = [wish("warm", least=0), wish("hot", least=0)]
    view = mesh(node("a", offer("warm"), offer("hot"), wishes=wishes, running=[runs("warm")]))
    plan = place_replicas(view, {"warm": 0.03, "hot": 1e5})
    assert where(plan, "warm") == ["a"]
    assert where(plan, "hot") == []
    assert "if memory were idle" in plan.placements[1].blockers[0].text
    assert "when memory is idle" in plan.placements[1].next_step


def test_only_as_many_give_way_as_must() -> None:
    wishes = [wish("small", least=0), wish("large", least=0), wish("named")]
    one = node(
        "a",
        offer("small", 2),
        offer("large", 5),
        offer("named", 5),
        wishes=wishes,
        running=[runs("small", gib=2), runs("large", gib=5)],
    )
    plan = place_replicas(mesh(one), {"small": 0.1, "large": 9.0})
    assert [release.model for release in releases(plan, "id-a")] == ["large"]


def test_of_two_claims_the_better_stands() -> None:
    claim = runs("m", Stage.CLAIMED)
    view = mesh(
        node("a", offer("m", speed=20), wishes=M, running=[claim]),
        node("b", offer("m", speed=40), wishes=M, running=[claim]),
        node("c", offer("m", speed=900), wishes=M),
    )
    plan = place_replicas(view, {})
    assert where(plan, "m") == ["b"]
    assert plan.placements[0].replicas[0].stage is Stage.CLAIMED


def test_no_nodes_no_plan() -> None:
    assert place_replicas(mesh(), {"m": 5}).placements == ()


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0, 1e308])
def test_absurd_figures_of_a_broken_node_stop_nobody(odd: float) -> None:
    broken = node("a", offer("m", speed=odd), wishes=M)
    rtt = (RttRecord("peer", odd, odd, odd),)
    broken = replace(broken, record=replace(broken.record, rtt=rtt))
    sound = node("b", offer("m", speed=50), wishes=M)
    plan = place_replicas(mesh(broken, sound), {"m": odd})
    assert len(where(plan, "m")) == 1
