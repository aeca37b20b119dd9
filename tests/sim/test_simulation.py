"""A few seeds of the simulation, and that its invariants would notice what they watch for.

More seeds, larger meshes and longer times: `python -m tests.sim.run --help`.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshd.mesh import membership
from meshd.mesh.intake import Intake
from meshd.mesh.member import Member
from meshd.mesh.messages import Entry
from meshd.planner.room import Room
from tests.sim.churn import Rates
from tests.sim.clock import Clock
from tests.sim.engines import OverMemoryError
from tests.sim.faults import LOSSY, PERFECT, Faults
from tests.sim.findings import Bounds
from tests.sim.node import SimNode
from tests.sim.run import scaled, simulate
from tests.sim.sharing import shared
from tests.sim.traffic import Traffic
from tests.sim.world import Settings, World

ROOT = Path(__file__).resolve().parents[2]
NO_BLOWS = scaled(Rates(), 0.0)
SMALL = Settings(
    nodes=12,
    models=6,
    start_s=4.0,
    warm_s=40.0,
    churn_s=90.0,
    calm_s=40.0,
    rates=scaled(Rates(), 30.0),
)
SHORT = dataclasses.replace(SMALL, churn_s=45.0, calm_s=20.0)
# Only crashes, seldom two at once, and nothing that might excuse what is seen wrongly.
CRASHES = dataclasses.replace(
    SMALL,
    churn_s=150.0,
    faults=PERFECT,
    rates=dataclasses.replace(NO_BLOWS, kill=12.0),
    bounds=Bounds(no_false_death=True, nothing_lost=True),
)


@pytest.mark.parametrize("seed", range(1, 21))
def test_a_mesh_under_blows_keeps_its_promises(seed: int) -> None:
    outcome = simulate(seed, SMALL)
    assert outcome.blows > 5
    assert outcome.starts > 0
    assert not outcome.violations, "\n".join(map(str, (outcome.line(), *outcome.violations)))


def test_five_percent_loss_buries_nobody_for_good() -> None:
    settings = dataclasses.replace(
        SMALL, faults=LOSSY, rates=dataclasses.replace(NO_BLOWS, kill=5.0)
    )
    outcome = simulate(1, settings)
    # Where one message in twenty is lost for good, which QUIC does not do, rivals sometimes do not
    # hear of each other and start a model twice (docs/benchmarks.md has how often).
    broken = [one for one in outcome.violations if one.rule != "no-oscillation"]
    assert not broken, "\n".join(map(str, broken))


def test_the_same_seed_is_the_same_run_in_another_process() -> None:
    """With another hash seed, so that no order of a set decides anything."""
    command = (
        "from tests.sim.test_simulation import SHORT, simulate; print(simulate(3, SHORT).trace)"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", command],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            timeout=110,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    }
    assert len(traces) == 1
    assert simulate(4, SHORT).trace not in traces.pop()


def test_steady_demand_moves_nothing() -> None:
    """No blows, no shifts, clients as ever: after a while no engine starts or stops."""
    settings = dataclasses.replace(SMALL, faults=PERFECT, rates=NO_BLOWS, warm_s=900.0)
    with shared() as decode:
        world = World(5, settings, decode)
        world.start()
        world.clock.run_until(600.0)
        starts = world.watch.deeds.tally.starts
        stops = sum(node.engines.stops for node in world.nodes)
        world.clock.run_until(900.0)
    assert starts > 0
    moved = world.watch.deeds.tally.starts - starts
    moved += sum(node.engines.stops for node in world.nodes) - stops
    assert moved <= 2, "demand that only trembles moved engines"


# --- the invariants can fail


def test_crashes_alone_break_nothing() -> None:
    """What the faults below are seeded into."""
    outcome = simulate(2, CRASHES)
    assert not outcome.violations, "\n".join(map(str, outcome.violations))


def test_without_grace_the_living_are_buried(monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = membership.Patience(grace_s=0.05, ping_s=0.001)
    monkeypatch.setitem(membership.PATIENCE, "lan", hasty)
    assert "no-false-death" in simulate(2, CRASHES).counts


def test_without_incarnations_the_buried_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first sketch did that `membership.md` 4.4 tells of."""
    start = SimNode.start

    def forgetful(self: SimNode) -> None:
        self.disk.incarnation = 0
        start(self)

    monkeypatch.setattr(SimNode, "start", forgetful)
    monkeypatch.setattr(Member, "_rise", lambda self, above: None)
    assert "alive-in-every-view" in simulate(2, CRASHES).counts


def test_believing_what_comes_last_lets_incarnations_fall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nodes that lost their disks, in a mesh that does not ask which incarnation is the newer."""
    start, take = SimNode.start, Intake._entry

    def forgetful(self: SimNode) -> None:
        self.disk.incarnation = 100 - self.process
        start(self)

    def gullible(self: Intake, entry: Entry, *rest: Any) -> Any:
        owner = self.gate.owner(entry.key)
        if owner != self.me and entry.incarnation != self.standing(owner).incarnation:
            self.lattice.drop_owner(owner)
        return take(self, entry, *rest)

    monkeypatch.setattr(SimNode, "start", forgetful)
    assert "incarnation-never-falls" not in simulate(2, CRASHES).counts
    monkeypatch.setattr(Intake, "_entry", gullible)
    assert "incarnation-never-falls" in simulate(2, CRASHES).counts


def test_without_refutation_the_buried_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: Member) -> None:
        self._refutation.done(self._now())

    monkeypatch.setattr(Member, "_refute", silent)
    settings = dataclasses.replace(SMALL, rates=dataclasses.replace(NO_BLOWS, split=120.0))
    assert "alive-in-every-view" in simulate(2, settings).counts


def test_without_burials_the_dead_stay_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(membership.PATIENCE, "lan", membership.Patience(grace_s=1e6, ping_s=1.0))
    assert "dead-in-no-view" in simulate(2, CRASHES).counts


def test_without_a_claim_window_two_start_what_one_should() -> None:
    """Who is new and takes its view for whole starts what others run, before it hears of them."""
    habits = dataclasses.replace(CRASHES.habits, window_s=0.0, early_s=0.0, alone_s=0.0)
    hasty = dataclasses.replace(CRASHES, habits=habits)
    assert simulate(2, hasty).counts.keys() == {"no-double-promotion"}


def test_memory_that_is_not_counted_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = dataclasses.replace(CRASHES, models=20)
    assert not simulate(2, crowded).violations
    monkeypatch.setattr(Room, "take", lambda self, memory: None)
    with pytest.raises(OverMemoryError):
        simulate(2, crowded)


def test_an_engine_that_is_never_ready_is_noticed() -> None:
    """Every load fails: what is wanted and could be served is not."""
    settings = dataclasses.replace(
        SMALL,
        faults=PERFECT,
        rates=NO_BLOWS,
        churn_s=20.0,
        calm_s=5.0,
        habits=dataclasses.replace(SMALL.habits, fails=1.0, retry_s=1.0),
        bounds=Bounds(served_s=10.0),
    )
    assert simulate(2, settings).counts.keys() & {"served-in-time", "no-oscillation"}


# --- what it costs


def _idle(nodes: int) -> tuple[float, float, int]:
    """Bytes a second and messages a second of a node in an idle mesh; puts that one kill causes."""
    settings = Settings(
        nodes=nodes,
        models=5,
        start_s=nodes / 20,
        faults=PERFECT,
        rates=NO_BLOWS,
        taste=dataclasses.replace(Settings().taste, total=0.0),
    )
    with shared() as decode:
        world = World(1, settings, decode)
        world.start()
        begin_s = settings.start_s + 200.0
        world.clock.run_until(begin_s)
        before = world.traffic()
        world.clock.run_until(begin_s + 60.0)
        spent = [now.since(then) for now, then in zip(world.traffic(), before, strict=True)]
        puts = world.carriage.puts
        idle = next(node for node in reversed(world.nodes) if not node.engines.runs)
        idle.stop(clean=False, engines_die=True)
        world.clock.run_until(begin_s + 90.0)
        assert all(
            node.member.status(idle.id) == "dead" for node in world.nodes if node.member is not None
        )
    return (
        sum(_size(one) for one in spent) / nodes / 60.0,
        sum(one.sent for one in spent) / nodes / 60.0,
        world.carriage.puts - puts,
    )


def _size(traffic: Traffic) -> int:
    return traffic.sent_bytes + traffic.received_bytes


def test_an_idle_node_costs_the_same_in_a_large_mesh() -> None:
    small, large = _idle(50), _idle(150)
    assert small[0] > 0
    assert large[0] <= 1.25 * small[0], (small, large)
    assert large[1] <= 1.25 * small[1], (small, large)
    assert large[0] < 100, "bytes a second beside what keeps sessions open"
    # A death is said once by each core at most.
    assert large[2] <= 9, (small, large)


# --- the simulation itself


def test_the_clock_keeps_the_order_of_what_is_due_at_once() -> None:
    clock = Clock()
    seen: list[str] = []
    clock.after(1.0, seen.append, "b")
    clock.after(0.5, seen.append, "a")
    clock.after(1.0, seen.append, "c")
    clock.after(0.7, seen.append, "never").cancel()
    clock.run_until(1.0)
    assert seen == ["a", "b", "c"]
    assert clock.now_s == 1.0


def test_faults_make_a_difference() -> None:
    calm = dataclasses.replace(SMALL, rates=NO_BLOWS, churn_s=30.0)
    traces = {
        simulate(1, dataclasses.replace(calm, faults=faults)).trace
        for faults in (PERFECT, Faults(), LOSSY)
    }
    assert len(traces) == 3
