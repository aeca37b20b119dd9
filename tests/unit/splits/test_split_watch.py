"""When an arrangement ends, who is blamed, and for how long."""

from __future__ import annotations

import pytest

from meshd.guard.status import End, GuardStatus, PeerStatus
from meshd.mesh.record import Lease, LeaseStage, NodeRecord, Part
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.plan import Decision, Link, Strategy
from meshd.split_watch import (
    ANSWER_S,
    AVOIDED_S,
    FAILURES,
    PROBATION_S,
    REACHED_S,
    SplitWatch,
    Troubles,
)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> SplitWatch:
    return SplitWatch(clock)


def decision(term: int = 1) -> Decision:
    return Decision(
        "big",
        Strategy.PIPELINE,
        "ada",
        parts=(Part("ada", "ram", 4, 1), Part("bob", "ram", 4, 1)),
        term=term,
        links=(Link("bob", "10.0.0.2", 9404),),
    )


def view(
    stage: LeaseStage | None = LeaseStage.READY,
    term: int = 1,
    *,
    there: bool = True,
    detail: str = "",
    progress: float = 0.0,
) -> MeshView:
    leases = ()
    if stage is not None:
        leases = (Lease("big", "ada", term, stage, 9340, progress, detail),)
    records = [NodeRecord("ada", "ada")]
    if there:
        records.append(NodeRecord("bob", "bob", leases=leases))
    members = tuple(MemberView(one.id, 1, Status.ALIVE, one) for one in records)
    return MeshView("ada", members)


def guard(
    *,
    reached: bool = True,
    silences: int = 0,
    losses: int = 0,
    term: int = 1,
    started_s: float = 1.0,
) -> dict[str, GuardStatus]:
    peer = PeerStatus(
        "bob", "x", reached=reached, silences=silences, losses=losses, last_trouble="it hung"
    )
    return {"big": GuardStatus("big", End.HOST, started_s, term, (peer,))}


def over(troubles: Troubles, term: int = 1) -> bool:
    return ("big", term) in troubles.spoiled


def test_what_is_well_stays(watch: SplitWatch, clock: Clock) -> None:
    for _ in range(100):
        assert watch.look([decision()], view(), guard()) == Troubles()
        clock.now_s += 10


@pytest.mark.parametrize("count", [{"silences": 1}, {"losses": 1}])
def test_a_loss_ends_the_term_at_once(watch: SplitWatch, count: dict[str, int]) -> None:
    watch.look([decision()], view(), guard())
    assert over(watch.look([decision()], view(), guard(**count)))


def test_a_loss_is_counted_once_and_not_for_the_next_term(watch: SplitWatch, clock: Clock) -> None:
    watch.look([decision()], view(), guard(losses=1))
    after = watch.look([decision(2)], view(term=2), guard(losses=1))
    assert not over(after, 2)
    # A guard that was started anew counts from nothing.
    clock.now_s += 60
    assert not over(watch.look([decision(2)], view(term=2), guard(term=2, started_s=9.0)), 2)
    assert over(watch.look([decision(2)], view(term=2), guard(term=2, started_s=9.0, losses=1)), 2)


def test_who_does_not_answer_is_waited_for_only_so_long(watch: SplitWatch, clock: Clock) -> None:
    assert not over(watch.look([decision()], view(None), {}))
    clock.now_s += ANSWER_S - 1
    assert not over(watch.look([decision()], view(None), {}))
    clock.now_s += 2
    assert over(watch.look([decision()], view(None), {}))


def test_who_is_ready_and_not_reached_is_waited_for_only_so_long(
    watch: SplitWatch, clock: Clock
) -> None:
    assert not over(watch.look([decision()], view(), guard(reached=False)))
    clock.now_s += REACHED_S + 1
    assert over(watch.look([decision()], view(), guard(reached=False)))


def test_seeding_may_take_long_as_long_as_it_gets_on(watch: SplitWatch, clock: Clock) -> None:
    for step in range(10):
        now = view(LeaseStage.SEEDING, progress=step / 10, detail=f"{step}")
        assert not over(watch.look([decision()], now, {}))
        clock.now_s += 300
    for step in range(4):
        stuck = watch.look(
            [decision()], view(LeaseStage.SEEDING, progress=0.9, detail=f"{step}"), {}
        )
        clock.now_s += 300
    assert over(stuck)


def test_a_refusal_excludes_at_once_and_briefly(watch: SplitWatch, clock: Clock) -> None:
    troubles = watch.look([decision()], view(LeaseStage.REFUSED, detail="no memory"), {})
    assert over(troubles)
    assert "no memory" in troubles.excluded["bob"]
    clock.now_s += 61
    assert watch.look([], view(), {}).excluded == {}


def test_a_member_that_is_gone_ends_it(watch: SplitWatch) -> None:
    watch.look([decision()], view(), guard())
    assert over(watch.look([decision()], view(there=False), guard()))


def test_a_new_brain_waits_until_it_has_heard_of_a_member(watch: SplitWatch, clock: Clock) -> None:
    assert not over(watch.look([decision()], view(there=False), guard()))
    clock.now_s += ANSWER_S - 1
    assert not over(watch.look([decision()], view(there=False), guard()))
    clock.now_s += 2
    assert over(watch.look([decision()], view(there=False), guard()))


def test_a_member_that_is_not_reached_is_avoided_for_a_while_and_not_excluded(
    watch: SplitWatch, clock: Clock
) -> None:
    watch.look([decision()], view(), guard(reached=False))
    clock.now_s += REACHED_S + 1
    troubles = watch.look([decision()], view(), guard(reached=False))
    assert over(troubles)
    assert "not reached" in troubles.avoided["bob"]
    assert troubles.excluded == {}
    clock.now_s += AVOIDED_S + 1
    assert watch.look([], view(), {}).avoided == {}


def fail(watch: SplitWatch, clock: Clock, term: int) -> Troubles:
    fresh = {"term": term, "started_s": float(term)}
    watch.look([decision(term)], view(term=term), guard(**fresh))  # type: ignore[arg-type]
    troubles = watch.look([decision(term)], view(term=term), guard(losses=1, **fresh))  # type: ignore[arg-type]
    clock.now_s += 1
    return troubles


def test_three_failures_are_a_probation_and_the_next_is_longer(
    watch: SplitWatch, clock: Clock
) -> None:
    for term in range(1, FAILURES):
        assert fail(watch, clock, term).excluded == {}
    troubles = fail(watch, clock, FAILURES)
    assert "it hung" in troubles.excluded["bob"]
    clock.now_s += PROBATION_S + 1
    assert watch.look([], view(), {}).excluded == {}
    for term in range(10, 10 + FAILURES):
        fail(watch, clock, term)
    clock.now_s += PROBATION_S + 1
    assert "bob" in watch.look([], view(), {}).excluded


def test_the_engine_waits_longer_each_time(watch: SplitWatch, clock: Clock) -> None:
    assert fail(watch, clock, 1).held == {}
    waits = [fail(watch, clock, term).held["big"] for term in (2, 3, 4)]
    assert waits == sorted(waits)
    assert len(set(waits)) == 3
    clock.now_s += 60
    assert watch.look([], view(), {}).held == {}
