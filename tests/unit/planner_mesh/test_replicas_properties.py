"""What holds for every mesh, whoever is in it and whatever runs."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.mesh.record import Assignment, Stage
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.heat import HIGH_PER_REPLICA, LOW_PER_REPLICA, replicas_for
from meshd.planner.mesh_plan import MeshPlan
from meshd.planner.plan import Code, Strategy
from meshd.planner.replicas import place_replicas
from meshd.planner.room import Room
from tests.unit.planner_mesh.meshes import applied, mesh, node, offer, where, wish

NAMES = ("k", "l", "m", "n")
STEPS_MAX = 40

wishes = st.builds(
    wish,
    st.sampled_from(NAMES),
    st.integers(0, 3),
    st.none() | st.integers(0, 4),
    nodes=st.sampled_from([(), (), (), ("a", "b"), ("id-c",)]),
)
offers = st.builds(
    lambda model, gib, speed, strategy, content: replace(
        offer(model, gib, speed=speed),
        strategy=strategy,
        fingerprint=content or f"content-{model}",
    ),
    st.sampled_from(NAMES),
    st.sampled_from([1, 3, 6]),
    st.sampled_from([0.0, 10.0, 50.0]),
    st.sampled_from([Strategy.SOLO_GPU, Strategy.SOLO_GPU, Strategy.SOLO_CPU, Strategy.WAIT]),
    st.sampled_from(["", "", "", "other"]),
)


@st.composite
def members(draw: st.DrawFn, name: str) -> MemberView:
    mine = {one.model: one for one in draw(st.lists(offers, max_size=4))}
    running = {
        model: Assignment(
            model,
            mine[model].fingerprint,
            draw(st.sampled_from(Stage)),
            1,
            memory=mine[model].memory,
            settled=draw(st.booleans()),
        )
        for model in draw(
            st.sets(st.sampled_from(sorted(mine)), max_size=2) if mine else st.just(())
        )
    }
    asked = {one.model: one for one in draw(st.lists(wishes, max_size=3))}
    return node(
        name,
        *mine.values(),
        wishes=asked.values(),
        running=running.values(),
        gpus=tuple(draw(st.lists(st.sampled_from([4.0, 8.0]), min_size=1, max_size=2))),
        role=draw(st.sampled_from(["auto", "auto", "serve", "standby", "client"])),
        status=draw(st.sampled_from([Status.ALIVE] * 4 + [Status.SUSPECT])),
    )


@st.composite
def meshes(draw: st.DrawFn) -> MeshView:
    return mesh(*(draw(members(name)) for name in "abcdef"[: draw(st.integers(1, 6))]))


demands = st.dictionaries(
    st.sampled_from(NAMES), st.sampled_from([0.0, 0.01, 0.3, 1.0, 5.0, 12.0, 40.0]), max_size=4
)


@given(meshes(), demands, st.randoms())
def test_everybody_computes_the_same(
    view: MeshView, demand: dict[str, float], rng: random.Random
) -> None:
    shuffled = list(view.members)
    rng.shuffle(shuffled)
    mixed = []
    for member in shuffled:
        record = member.record
        lists = [list(record.offers), list(record.assignments), list(record.devices)]
        for one in lists:
            rng.shuffle(one)
        record = replace(
            record,
            offers=tuple(lists[0]),
            assignments=tuple(lists[1]),
            devices=tuple(lists[2]),
        )
        mixed.append(replace(member, record=record))
    other = MeshView(shuffled[0].id, tuple(mixed), digest=7)
    pairs = list(demand.items())
    rng.shuffle(pairs)
    assert place_replicas(other, dict(pairs)) == place_replicas(view, demand)


@given(meshes(), demands)
def test_memory_is_never_promised_twice(view: MeshView, demand: dict[str, float]) -> None:
    plan = place_replicas(view, demand)
    for member in view.members:
        used: dict[str, int] = {}
        new: set[str] = set()
        for placement in plan.placements:
            replica = placement.replica(member.id)
            for use in replica.memory if replica is not None else ():
                used[use.device] = used.get(use.device, 0) + use.size_bytes
                if replica is not None and replica.stage in (None, Stage.CLAIMED):
                    new.add(use.device)
        room = {device.id: device.plannable_bytes for device in member.record.devices}
        for device in new:
            assert used[device] <= room[device]


@given(meshes(), demands)
def test_every_replica_and_release_makes_sense(view: MeshView, demand: dict[str, float]) -> None:
    plan = place_replicas(view, demand)
    for placement in plan.placements:
        nodes = [replica.node for replica in placement.replicas]
        assert len(set(nodes)) == len(nodes)
        leaving = {release.node for release in placement.releases}
        assert not leaving & set(nodes)
        for replica in placement.replicas:
            member = view.member(replica.node)
            assert member is not None
            here = member.record.assignment(placement.model)
            if replica.stage is None:
                assert member.status is Status.ALIVE
                assert member.record.role != "client"
                assert here is None or here.stage is Stage.CLAIMED
            else:
                assert here is not None
                assert here.stage is replica.stage
        for release in placement.releases:
            if release.code is Code.GAVE_WAY:
                favoured = plan.placement(release.in_favour_of)
                assert favoured is not None
                assert favoured.replica(release.node) is not None
            elif release.code is Code.SURPLUS:
                assert any(
                    replica.stage is Stage.READY
                    and (other := view.member(replica.node)) is not None
                    and other.status is Status.ALIVE
                    for replica in placement.replicas
                )
        if placement.wanted > len(nodes):
            assert placement.blockers
            assert placement.next_step


def converge(view: MeshView, demand: dict[str, float]) -> tuple[MeshView, MeshPlan]:
    for _ in range(STEPS_MAX):
        plan = place_replicas(view, demand)
        after = applied(view, plan)
        if after == view:
            return view, plan
        view = after
    pytest.fail(f"still changing after {STEPS_MAX} steps")


@settings(deadline=None)
@given(meshes(), demands)
def test_done_as_it_says_it_comes_to_rest_with_all_minimums_that_fit(
    view: MeshView, demand: dict[str, float]
) -> None:
    view, plan = converge(view, demand)
    rooms = {member.id: Room(member.record.devices) for member in view.members}
    for placement in plan.placements:
        for replica in placement.replicas:
            rooms[replica.node].take(replica.memory)
    least = {
        model: max(one.least for m in view.members for one in m.record.wishes if one.model == model)
        for model in {one.model for m in view.members for one in m.record.wishes}
    }
    for placement in plan.placements:
        assert all(replica.stage is Stage.READY for replica in placement.replicas)
        if len(placement.replicas) >= least[placement.model]:
            continue
        barred = {one.node for one in placement.excluded}
        for member in view.members:
            offered = member.record.offer(placement.model)
            free = member.id not in barred and placement.replica(member.id) is None
            if free and offered is not None and member.status is Status.ALIVE:
                assert rooms[member.id].fit(offered.memory) is None


@given(
    st.floats(0, 1000),
    st.integers(0, 30),
    st.integers(0, 5),
    st.none() | st.integers(0, 9),
    st.booleans(),
)
def test_no_number_of_replicas_oscillates(
    rate: float, running: int, least: int, most: int | None, answers: bool
) -> None:
    def wanted(running: int) -> int:
        return replicas_for(rate, running, least, most, answers=answers)

    seen = [running]
    while (number := wanted(seen[-1])) != seen[-1]:
        seen.append(number)
        assert len(seen) < 200
    moves = [later - earlier for earlier, later in pairwise(seen)]
    # The limits of the configuration hold at once; demand then moves it in one direction.
    assert all(move > 0 for move in moves[1:]) or all(move < 0 for move in moves[1:])


@pytest.mark.parametrize("threshold", [HIGH_PER_REPLICA * 2, LOW_PER_REPLICA * 3])
def test_demand_that_trembles_around_a_threshold_moves_nothing_more_than_once(
    threshold: float,
) -> None:
    rng = random.Random(3)
    view = mesh(*(node(n, offer("m"), wishes=[wish("m")]) for n in "abcde"))
    for _ in range(3):
        view = applied(view, place_replicas(view, {"m": 28.0}))
    sizes = []
    for _ in range(300):
        plan = place_replicas(view, {"m": threshold * rng.uniform(0.8, 1.25)})
        view = applied(view, plan)
        sizes.append(len(where(plan, "m")))
    changes = sum(one != two for one, two in pairwise(sizes))
    assert changes <= 1


def test_a_thousand_nodes_lose_one_and_only_its_models_move() -> None:
    models = [f"m{i}" for i in range(20)]
    asked = [wish(model, least=2) for model in models]
    rng = random.Random(5)
    view = mesh(
        *(
            node(f"{i:04}", *(offer(m, 4) for m in rng.sample(models, 4)), wishes=asked)
            for i in range(1000)
        )
    )
    view = applied(view, place_replicas(view, {}))
    before = place_replicas(view, {})
    assert all(len(p.replicas) == 2 for p in before.placements)
    victim = before.placements[0].replicas[0].node
    left = replace(view, members=tuple(m for m in view.members if m.id != victim))
    after = place_replicas(left, {})
    for old, new in zip(before.placements, after.placements, strict=True):
        stayed = {replica.node for replica in old.replicas} - {victim}
        assert stayed <= {replica.node for replica in new.replicas}
        assert len(new.replicas) == 2
