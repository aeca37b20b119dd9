from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.deeds import Deeds, EngineNow
from meshd.mesh.record import Assignment, Stage
from meshd.planner.claims import CLAIM_WINDOW_S, Engine, Own, next_claims
from meshd.planner.replicas import place_replicas
from tests.unit.planner_mesh.meshes import mesh, node, offer, runs, wish
from tests.unit.planner_mesh.standbys import LOAD_S, World

SEEDS = 1000
CALM_S = 60.0


def step(
    *running: Assignment,
    stage_s: float = 0.0,
    engine: Engine = Engine.ABSENT,
    calm_s: float = CALM_S,
    wishes: tuple[object, ...] = (wish("m"),),
    **others: object,
) -> tuple[tuple[Assignment, ...], float | None]:
    """What a node "a" does, alone unless `others` are there."""
    me = node("a", offer("m"), offer("n"), wishes=wishes, running=running)  # type: ignore[arg-type]
    plan = place_replicas(mesh(me, *others.values()), {})  # type: ignore[arg-type]
    own = [Own(one, stage_s, engine) for one in running]
    answer = next_claims(plan, "id-a", own, calm_s=calm_s, terms={"m": 6})
    return answer.assignments, answer.again_s


def test_one_of_twenty_standbys_promotes() -> None:
    rivals = 0
    for seed in range(SEEDS):
        world = World(seed)
        world.run(10 * CLAIM_WINDOW_S + LOAD_S)
        assert len(world.starts) == 1, f"seed {seed}: {world.starts}"
        assert world.stages(Stage.READY) == [world.starts[0][1]], f"seed {seed}"
        assert world.stages(Stage.CLAIMED) == [], f"seed {seed}"
        rivals += len(world.claims) > 1
    # Views that differ do bring rivals forth, or this test would show nothing.
    assert rivals > SEEDS // 10


def test_with_a_window_too_short_several_would_promote() -> None:
    worlds = [World(seed, window_s=CLAIM_WINDOW_S / 20) for seed in range(50)]
    for world in worlds:
        world.run(10 * CLAIM_WINDOW_S + LOAD_S)
    assert any(len(world.starts) > 1 for world in worlds)


def test_when_the_one_that_claimed_dies_another_promotes() -> None:
    for seed in range(100):
        world = World(seed)
        while not world.stages(Stage.CLAIMED):
            world.run(world.now + 0.01)
        victim = world.stages(Stage.CLAIMED)[0]
        world.kill(victim)
        world.run(20 * CLAIM_WINDOW_S + LOAD_S)
        starts = [name for _, name in world.starts if name != victim]
        assert len(starts) == 1, f"seed {seed}: {world.starts}"
        assert world.stages(Stage.READY) == starts


def test_when_an_engine_fails_the_next_node_takes_over() -> None:
    for seed in range(50):
        broken: set[str] = set()

        def first_ones_break(name: str, broken: set[str] = broken) -> bool:
            if len(broken) < 2:
                broken.add(name)
            return name in broken

        world = World(seed, breaks=first_ones_break)
        world.run(40 * CLAIM_WINDOW_S + 4 * LOAD_S)
        assert len(world.starts) == 3, f"seed {seed}: {world.starts}"
        assert world.stages(Stage.READY) == [world.starts[-1][1]]
        assert sorted(world.stages(Stage.FAILED)) == sorted(broken)


def test_a_duty_is_claimed_first_in_a_new_term() -> None:
    (claim,), again_s = step()
    assert claim.stage is Stage.CLAIMED
    assert claim.term == 7
    assert claim.fingerprint == "content-m"
    assert claim.memory
    assert again_s == 2 * CLAIM_WINDOW_S


def test_a_claim_waits_its_time_and_for_calm_but_not_for_ever() -> None:
    claim = runs("m", Stage.CLAIMED)
    early, again_s = step(claim, stage_s=0.5)
    assert early[0].stage is Stage.CLAIMED
    assert again_s == pytest.approx(2 * CLAIM_WINDOW_S - 0.5)
    restless, again_s = step(claim, stage_s=1.0, calm_s=0.1)
    assert restless[0].stage is Stage.CLAIMED
    assert again_s == pytest.approx(CLAIM_WINDOW_S - 0.1)
    assert step(claim, stage_s=1.0)[0][0].stage is Stage.LOADING
    assert step(claim, stage_s=11 * CLAIM_WINDOW_S, calm_s=0)[0][0].stage is Stage.LOADING


def test_a_worse_claim_is_withdrawn() -> None:
    claim = runs("m", Stage.CLAIMED)
    better = node("b", offer("m", speed=900), wishes=[wish("m")], running=[claim])
    assert step(claim, stage_s=5.0, better=better)[0] == ()


def test_loading_becomes_ready_and_settles_after_its_dwell() -> None:
    loading = runs("m", Stage.LOADING, settled=False)
    (ready,), _ = step(loading, engine=Engine.ANSWERS, stage_s=20)
    assert (ready.stage, ready.settled, ready.progress) == (Stage.READY, False, 1.0)
    (young,), again_s = step(ready, engine=Engine.ANSWERS, stage_s=100)
    assert not young.settled
    assert again_s == 200
    (old,), again_s = step(ready, engine=Engine.ANSWERS, stage_s=300)
    assert old.settled
    assert again_s is None


def test_an_engine_that_stopped_answering_is_not_ready() -> None:
    ready = runs("m", Stage.READY)
    assert step(ready, engine=Engine.STARTING)[0][0].stage is Stage.LOADING
    (failed,), _ = step(ready, engine=Engine.FAILED)
    assert (failed.stage, failed.settled) == (Stage.FAILED, False)


def test_a_failure_is_remembered_for_a_while() -> None:
    failed = runs("m", Stage.FAILED)
    assert step(failed, stage_s=299)[0][0].stage is Stage.FAILED
    assert step(failed, stage_s=300)[0] == ()
    assert step(failed, stage_s=1, engine=Engine.ANSWERS)[0][0].stage is Stage.READY
    assert step(failed, stage_s=1, wishes=())[0] == ()


def test_what_is_given_back_drains_until_its_engine_is_gone() -> None:
    (draining,), _ = step(runs("m"), engine=Engine.ANSWERS, wishes=())
    assert draining.stage is Stage.DRAINING
    assert step(draining, engine=Engine.ANSWERS, wishes=())[0] == (draining,)
    assert step(draining, engine=Engine.ABSENT, wishes=())[0] == ()


def test_a_claim_nobody_asks_for_any_more_is_just_dropped() -> None:
    assert step(runs("m", Stage.CLAIMED), wishes=())[0] == ()


def test_the_popular_one_is_stopped_when_the_named_ones_claim_has_stood_and_not_before() -> None:
    wishes = (wish("m", least=0), wish("n"))
    popular, claim = runs("m"), runs("n", Stage.CLAIMED)

    def stages(named: Assignment, claimed_s: float, other: Assignment) -> dict[str, Stage]:
        me = node("a", offer("m"), offer("n"), wishes=wishes, running=(other, named))
        engine = Engine.ANSWERS
        own = [Own(other, 900, engine), Own(named, claimed_s)]
        plan = place_replicas(mesh(me), {"m": 5.0})
        answer = next_claims(plan, "id-a", own, calm_s=CALM_S)
        return {one.model: one.stage for one in answer.assignments}

    assert stages(claim, 0.1, popular) == {"m": Stage.READY, "n": Stage.CLAIMED}
    assert stages(claim, 1.0, popular) == {"m": Stage.DRAINING, "n": Stage.CLAIMED}
    leaving = replace(popular, stage=Stage.DRAINING)
    # Its memory is not there before it is gone.
    assert stages(claim, 2.0, leaving) == {"m": Stage.DRAINING, "n": Stage.CLAIMED}
    (loading,), _ = step(claim, stage_s=3.0, wishes=wishes)
    assert (loading.model, loading.stage) == ("n", Stage.LOADING)


def test_how_far_a_load_is_is_said_in_tenths() -> None:
    deeds = Deeds(lambda: 0.0)
    deeds.took((runs("m", Stage.LOADING, settled=False),))
    (own,) = deeds.own({"m": EngineNow(Engine.STARTING, progress=0.43)})
    assert own.progress == 0.43
    me = node("a", offer("m"), wishes=(wish("m"),), running=(own.assignment,))
    plan = place_replicas(mesh(me), {})
    (said,) = next_claims(plan, "id-a", (own,), calm_s=CALM_S).assignments
    assert (said.stage, said.progress) == (Stage.LOADING, 0.4)
