from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.paths import SYSTEM
from meshd.units.diff import Action, ActionKind, changes, diff
from meshd.units.render import render_dropin as render_for
from meshd.units.spec import EngineKind, EngineSpec, EngineState, EngineStatus
from meshd.units.steps import Step, StepKind, steps


def render_dropin(wanted: EngineSpec) -> str:
    return render_for(wanted, SYSTEM)


_NAMES = ("a", "b", "c", "d")


def spec(name: str, slots: int = 1, kind: EngineKind = EngineKind.LLAMA) -> EngineSpec:
    argv = ("/usr/bin/llama-server", "--parallel", str(slots))
    return EngineSpec(kind, name, f"model {name}", argv, load_bytes=100)


def status(
    name: str, state: EngineState = EngineState.RUNNING, slots: int = 1, text: str | None = None
) -> EngineStatus:
    rendered = render_dropin(spec(name, slots)) if text is None else text
    return EngineStatus(EngineKind.LLAMA, name, state, rendered)


def kinds(actions: tuple[Action, ...]) -> list[tuple[str, str]]:
    return [(action.kind.value, action.unit) for action in actions]


def test_stops_come_before_restarts_before_starts() -> None:
    running = (status("b"), status("z"), status("c"), status("a"))
    actions = diff(running, (spec("new"), spec("b"), spec("c", slots=4)), render_dropin)
    assert kinds(actions) == [
        ("stop", "mesh-llama@a.service"),
        ("stop", "mesh-llama@z.service"),
        ("restart", "mesh-llama@c.service"),
        ("start", "mesh-llama@new.service"),
        ("none", "mesh-llama@b.service"),
    ]
    assert [action.load_bytes for action in actions] == [0, 0, 100, 100, 0]
    assert [action.unit for action in changes(actions)] == [a.unit for a in actions[:-1]]


@pytest.mark.parametrize(
    "state",
    [EngineState.STARTING, EngineState.RUNNING, EngineState.BACKOFF, EngineState.FAILED],
)
def test_an_engine_of_the_same_text_is_left_to_systemd(state: EngineState) -> None:
    (action,) = diff((status("a", state),), (spec("a"),), render_dropin)
    assert action.kind is ActionKind.NONE


@pytest.mark.parametrize("state", [EngineState.STOPPED, EngineState.STOPPING])
def test_an_engine_that_somebody_stopped_is_started(state: EngineState) -> None:
    (action,) = diff((status("a", state),), (spec("a"),), render_dropin)
    assert action.kind is ActionKind.START


def test_an_engine_of_unknown_text_is_restarted() -> None:
    (action,) = diff((status("a", text=""),), (spec("a"),), render_dropin)
    assert action.kind is ActionKind.RESTART
    assert action.reason == "started by somebody else"


def test_a_stopped_unit_that_nobody_wants_is_no_action() -> None:
    assert diff((status("a", EngineState.STOPPED),), (), render_dropin) == ()


def test_kinds_with_one_name_are_two_units() -> None:
    both = (spec("a"), spec("a", kind=EngineKind.RPC))
    assert kinds(diff((), both, render_dropin)) == [
        ("start", "mesh-llama@a.service"),
        ("start", "mesh-rpc@a.service"),
    ]


def test_two_engines_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        diff((), (spec("a"), spec("a", slots=2)), render_dropin)


class World:
    """Units as systemd and the disk hold them; keeps the text each process was started with."""

    def __init__(self, running: dict[str, int], stale: set[str]) -> None:
        self.disk = {f"mesh-llama@{n}.service": text(n, slots) for n, slots in running.items()}
        self.processes = dict(self.disk)
        self.starts = 0
        for name in stale - running.keys():
            self.disk[f"mesh-llama@{name}.service"] = text(name, 9)
        self.loaded = dict(self.disk)

    def observe(self) -> tuple[EngineStatus, ...]:
        """As the applier does: the text is read from the disk."""
        return tuple(
            status(
                unit.removeprefix("mesh-llama@").removesuffix(".service"),
                EngineState.RUNNING if unit in self.processes else EngineState.STOPPED,
                text=dropin,
            )
            for unit, dropin in self.disk.items()
        )

    def do(self, step: Step) -> None:
        match step.kind:
            case StepKind.STOP:
                del self.processes[step.unit]
            case StepKind.WRITE:
                self.disk[step.unit] = step.text
            case StepKind.REMOVE:
                del self.disk[step.unit]
            case StepKind.RELOAD:
                self.loaded = dict(self.disk)
            case StepKind.START:
                self.processes[step.unit] = self.loaded[step.unit]
                self.starts += 1

    def plan(self, wanted: tuple[EngineSpec, ...]) -> tuple[Step, ...]:
        actions = diff(self.observe(), wanted, render_dropin)
        return steps(actions, {s.unit: render_dropin(s) for s in wanted}, self.disk)


def text(name: str, slots: int) -> str:
    return render_dropin(spec(name, slots))


_SETS = st.dictionaries(st.sampled_from(_NAMES), st.integers(1, 3))


@given(_SETS, _SETS, _SETS, st.sets(st.sampled_from(_NAMES)))
def test_after_any_interruption_the_next_run_converges(
    before: dict[str, int], first: dict[str, int], second: dict[str, int], stale: set[str]
) -> None:
    """Every prefix of one run, cut off, then a run towards something else (or the same)."""
    wanted = tuple(spec(name, slots) for name, slots in first.items())
    later = tuple(spec(name, slots) for name, slots in second.items())
    length = len(World(before, stale).plan(wanted))
    for cut in range(length + 1):
        for target in (wanted, later):
            world = World(before, stale)
            for step in world.plan(wanted)[:cut]:
                world.do(step)
            adopted = {
                unit: running
                for unit, running in world.processes.items()
                if running in {render_dropin(s) for s in target}
            }
            started = world.starts
            remaining = world.plan(target)
            for step in remaining:
                world.do(step)
            texts = {s.unit: render_dropin(s) for s in target}
            assert world.processes == texts
            assert world.disk == texts
            assert world.starts - started == len(texts) - len(adopted), "only what changed starts"
            assert world.plan(target) == (), "and then there is nothing left to do"


def test_what_runs_unchanged_is_in_no_step() -> None:
    world = World({"a": 1, "b": 1}, set())
    planned = world.plan((spec("a"), spec("b", slots=2)))
    assert {step.unit for step in planned} == {"mesh-llama@b.service", ""}


def test_an_action_says_what_it_is_about() -> None:
    action = diff((), (spec("a"),), render_dropin)[0]
    assert replace(action, reason="") == Action(ActionKind.START, action.unit, "", 100)


_BELOW = ("mesh-guard@a.service", "mesh-rpc@a.service")


def test_what_a_llama_server_stands_on_starts_before_it_and_stops_after_it() -> None:
    split = (spec("a"), spec("a", kind=EngineKind.RPC), spec("a", kind=EngineKind.GUARD))
    texts = {one.unit: render_dropin(one) for one in split}
    started = [
        step.unit
        for step in steps(diff((), split, render_dropin), texts, ())
        if step.kind is StepKind.START
    ]
    assert started == [*_BELOW, "mesh-llama@a.service"]
    running = [
        EngineStatus(one.kind, one.name, EngineState.RUNNING, texts[one.unit]) for one in split
    ]
    stopped = [
        step.unit
        for step in steps(diff(running, (), render_dropin), {}, ())
        if step.kind is StepKind.STOP
    ]
    assert stopped == ["mesh-llama@a.service", *_BELOW]
