"""What is done about engines that hang or run out of memory, in made-up time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.mesh.record import Part
from meshd.paths import SYSTEM
from meshd.planner.layout import RAM
from meshd.planner.place import offer, plan
from meshd.planner.plan import Code, Decision, DeviceUse, Strategy
from meshd.planner.view import Running
from meshd.progress import Health, Verdict
from meshd.revival import DELAYS_S, PROBATION_S, WINDOW_S, Revival, Revivals
from meshd.units.render import attempt_in, render_dropin
from meshd.units.spec import EngineKind, EngineSpec, EngineState, EngineStatus
from tests.unit.worlds import GIB, config, facts, node, view, wants

DECISION = Decision(
    model="m",
    strategy=Strategy.SOLO_CPU,
    node="box",
    context=8192,
    slots=4,
    memory=(DeviceUse(RAM, 4 * GIB, 2 * GIB, GIB),),
)
UNIT = "mesh-llama@m.service"


class Life:
    """One engine, and what the hand would make of its number."""

    def __init__(self, decision: Decision = DECISION) -> None:
        self.now_s = 1000.0
        self.revivals = Revivals(lambda: self.now_s)
        self.decision = decision
        self.state = EngineState.RUNNING
        self.detail = ""
        self.restarts = 0
        self.pid = 100
        self.attempt = 0
        self.verdict = Verdict(Health.FINE, 0.0)
        self.gone = False

    def text(self, attempt: int) -> str:
        spec = EngineSpec(EngineKind.LLAMA, "m", "m", ("/usr/bin/llama-server",), attempt=attempt)
        return render_dropin(spec, SYSTEM)

    def look(self) -> Revival:
        """A pass: a new number is a new process, a failed model's engine is stopped."""
        fine = self.verdict.health is Health.FINE
        engine = EngineStatus(
            EngineKind.LLAMA, "m", self.state, self.text(self.attempt), self.pid, self.restarts,
            self.detail,
        )  # fmt: skip
        running = Running(self.decision, "id", resident=fine)
        said = self.revivals.look(
            () if self.gone else (running,),
            () if self.gone else (engine,),
            lambda unit, pid: self.verdict if (unit, pid) == (UNIT, self.pid) else None,
        )
        if "m" in said.failed:
            self.gone = True
        elif said.attempts.get(UNIT, 0) > self.attempt:
            self.attempt = said.attempts[UNIT]
            self.pid += 1
            self.gone = False
            self.verdict = Verdict(Health.LOADING, self.now_s)
        return said

    def hangs(self) -> Revival:
        self.verdict = Verdict(Health.HUNG, self.now_s, "it has not answered for 11 s")
        return self.look()

    def runs_out(self, detail: str = "oom-kill: SIGKILL") -> Revival:
        self.state, self.detail = EngineState.BACKOFF, detail
        said = self.look()
        self.state, self.detail = EngineState.RUNNING, ""
        self.restarts += 1
        self.pid += 1
        self.now_s += 20
        return said


def test_an_engine_that_is_well_has_no_number() -> None:
    assert Life().look() == Revival()


def test_a_hung_engine_is_restarted_at_once_and_once() -> None:
    life = Life()
    assert life.hangs().attempts == {UNIT: 1}
    assert life.revivals.look((), (), lambda unit, pid: None).reasons == {
        UNIT: "hung: it has not answered for 11 s"
    }
    for _ in range(5):
        assert life.look().attempts == {UNIT: 1}


def test_asked_twice_about_one_process_the_number_is_the_same() -> None:
    life = Life()
    engine = EngineStatus(EngineKind.LLAMA, "m", EngineState.RUNNING, life.text(0), 100)
    hung = Verdict(Health.HUNG, 0.0, "it is silent")
    for _ in range(3):
        said = life.revivals.look(
            (Running(DECISION, "id", resident=False),), (engine,), lambda unit, pid: hung
        )
        assert said.attempts == {UNIT: 1}


def test_the_next_restarts_wait_longer() -> None:
    life = Life()
    life.hangs()
    for number, delay_s in enumerate(DELAYS_S[1:], start=2):
        began_s = life.now_s
        while life.hangs().attempts[UNIT] < number:
            again_s = life.revivals.again_s()
            assert again_s is not None
            assert 0 < again_s <= delay_s
            life.now_s += again_s
        assert life.now_s - began_s == pytest.approx(delay_s)


def until_failed(life: Life) -> Revival:
    said = life.hangs()
    while not said.failed:
        life.now_s += life.revivals.again_s() or 1.0
        said = life.hangs()
    return said


def test_after_three_restarts_in_a_row_it_counts_as_failed_and_is_tried_again() -> None:
    life = Life()
    failed = until_failed(life)
    assert life.attempt == len(DELAYS_S)
    assert failed.failed == {"m": "hung 4 times in a row: it has not answered for 11 s"}
    # Its engine is gone; nothing happens until the time is over.
    life.now_s += PROBATION_S - 1
    assert life.look().failed
    assert life.revivals.again_s() == pytest.approx(1)
    life.now_s += 1
    assert life.look().failed == {}
    assert life.attempt == len(DELAYS_S) + 1
    assert not life.gone
    # Hangs it again, it fails for twice as long.
    began_s = life.now_s
    until_failed(life)
    life.now_s += PROBATION_S * 2 - 1
    assert life.look().failed
    life.now_s += 1
    assert not life.look().failed
    assert life.now_s - began_s > PROBATION_S * 2


def test_hangs_that_are_far_apart_have_nothing_to_do_with_each_other() -> None:
    life = Life()
    for number in range(1, 8):
        said = life.hangs()
        assert (said.attempts, said.failed) == ({UNIT: number}, {})
        life.verdict = Verdict(Health.FINE, 0.0)
        life.look()
        life.now_s += WINDOW_S


def test_a_brain_that_starts_anew_keeps_the_number_that_runs() -> None:
    life = Life()
    life.attempt = 7
    assert life.look().attempts == {UNIT: 7}
    assert life.hangs().attempts == {UNIT: 8}
    assert attempt_in(life.text(8)) == 8
    assert attempt_in(life.text(0)) == 0


def test_out_of_memory_three_times_lowers_what_is_planned() -> None:
    life = Life()
    assert life.runs_out().ceilings == {}
    assert life.runs_out().ceilings == {}
    (ceiling,) = life.runs_out().ceilings.values()
    # The weights stay, the rest becomes three quarters.
    assert ceiling.failed_bytes == 7 * GIB
    assert ceiling.ram_bytes == 4 * GIB + int(3 * GIB * 0.75)
    assert life.look().failed == {}


def test_the_ceiling_is_lifted_after_a_while_which_grows() -> None:
    life = Life()
    for wait_s in (PROBATION_S, 2 * PROBATION_S):
        life.runs_out()
        life.runs_out()
        assert life.runs_out().ceilings
        # The end itself took no time, the delay after it did.
        life.now_s += wait_s - 20 - 1
        assert life.look().ceilings
        assert life.revivals.again_s() == pytest.approx(1)
        life.now_s += 1
        assert not life.look().ceilings


def test_an_end_is_counted_once_however_often_it_is_seen() -> None:
    life = Life()
    life.state, life.detail = EngineState.BACKOFF, "oom-kill: SIGKILL"
    for _ in range(10):
        assert life.look().ceilings == {}


def test_a_kill_by_somebody_after_it_answered_is_no_lack_of_memory() -> None:
    life = Life()
    for _ in range(6):
        life.verdict = Verdict(Health.FINE, 0.0)
        life.look()
        assert life.runs_out("killed by SIGKILL").ceilings == {}
    # The kernel's own word is believed, and so is one who never comes so far as to answer.
    life.verdict = Verdict(Health.LOADING, 0.0)
    life.runs_out("killed by SIGKILL")
    life.runs_out("killed by SIGKILL")
    assert life.runs_out("killed by SIGKILL").ceilings


def test_a_split_that_runs_out_of_memory_fails() -> None:
    parts = (Part("other", "ram", 4, GIB), Part("box", "ram", 4, GIB))
    life = Life(replace(DECISION, strategy=Strategy.PIPELINE, parts=parts))
    life.runs_out()
    life.runs_out()
    assert life.runs_out().failed == {"m": "ran out of memory three times"}


def test_the_planner_finds_a_smaller_shape_below_the_ceiling() -> None:
    life = Life()
    world = node(models={"m": facts()})
    (first,) = plan(view(world), config(wants("m"))).decisions
    life.decision = first
    life.runs_out()
    life.runs_out()
    ceilings = life.runs_out().ceilings
    running = (Running(first, "m:1", resident=False),)
    there = replace(world, running=running, ceilings=ceilings)
    (again,) = plan(view(there), config(wants("m"))).decisions
    assert again.served
    assert again.memory_bytes <= ceilings["m"].ram_bytes < first.memory_bytes
    assert Code.RAN_OUT in {reason.code for reason in again.reasons}
    # What runs like that then is kept.
    then = replace(there, running=(Running(again, "m:1", resident=True),))
    (kept,) = plan(view(then), config(wants("m"))).decisions
    assert (kept.context, kept.slots) == (again.context, again.slots)
    # What nobody may shrink waits, and says why.
    fixed = wants("m", context=first.context, slots=first.slots)
    refused = offer(there, config(fixed), fixed)
    assert not refused.served
    assert Code.RAN_OUT in {reason.code for reason in refused.blockers}
