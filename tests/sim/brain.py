"""What a node makes of its view: the real placement and the real claims, and the engines obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from meshd.mesh.record import Assignment, NodeRecord, Stage
from meshd.mesh.view import MeshView
from meshd.planner.claims import Engine, Own, next_claims
from meshd.planner.mesh_plan import MeshPlan
from tests.sim.clock import Clock
from tests.sim.engines import Engines
from tests.sim.fleet import Machine, Model


@dataclass(frozen=True, slots=True)
class Habits:
    """How the planner is set.

    :ivar fails: part of loads that end in a failure.
    :ivar rest_s: from a change to the pass that takes it up, so that many make one pass.
    :ivar beat_s: passes fall on its multiples, so that a thousand nodes, most of which see the same
        at one instant, share a placement; 0 for passes at any time.
    :ivar weigh_s: between two looks at what is in demand.
    :ivar early_s: after a start, before a node takes its view for whole; `alone_s` when it sees
        nobody else.
    """

    window_s: float = 0.4
    dwell_s: float = 300.0
    retry_s: float = 300.0
    fails: float = 0.02
    rest_s: float = 0.1
    beat_s: float = 0.0
    weigh_s: float = 5.0
    early_s: float = 2.0
    alone_s: float = 6.0


@dataclass(slots=True)
class Deed:
    """One of the node's own assignments, and since when it is at its stage."""

    assignment: Assignment
    since_s: float


@dataclass(slots=True)
class Brain:
    """:ivar terms: highest term used, by model; on disk, so it outlives the process.

    :ivar loading: told when an engine starts: (model, plan of that moment).
    """

    machine: Machine
    models: dict[str, Model]
    clock: Clock
    engines: Engines
    habits: Habits
    loading: Callable[[str, MeshPlan, MeshView], None]
    moved: Callable[[str, Stage | None, Stage | None], None]
    deeds: dict[str, Deed] = field(default_factory=dict)
    terms: dict[str, int] = field(default_factory=dict)
    roster: int = -1
    calm_s: float = 0.0
    begun_s: float = 0.0

    def restart(self) -> None:
        """A new process adopts the engines that run and knows nothing else."""
        now_s = self.clock.now_s
        self.roster, self.calm_s, self.begun_s = -1, now_s, now_s
        self.deeds = {
            model: Deed(deed.assignment, now_s)
            for model, deed in self.deeds.items()
            if self.engines.state(model) in (Engine.STARTING, Engine.ANSWERS)
            and deed.assignment.stage is not Stage.CLAIMED
        }

    def power_off(self) -> None:
        for model, deed in self.deeds.items():
            self.moved(model, deed.assignment.stage, None)
        self.deeds.clear()
        self.engines.power_off()

    def step(self, view: MeshView, roster: int, plan: MeshPlan) -> float | None:
        """One pass. :returns: when to come again although nothing was heard, in seconds."""
        now_s = self.clock.now_s
        if roster != self.roster:
            self.roster, self.calm_s = roster, now_s
        own = [
            Own(
                deed.assignment,
                now_s - deed.since_s,
                self.engines.state(model),
                self.engines.progress(model),
                run.detail if (run := self.engines.runs.get(model)) is not None else "",
            )
            for model, deed in self.deeds.items()
        ]
        lonely = len(view.members) <= 1
        early_s = self.begun_s - now_s + (self.habits.alone_s if lonely else self.habits.early_s)
        claims = next_claims(
            plan,
            self.machine.id,
            own,
            calm_s=now_s - self.calm_s,
            terms=self.terms,
            window_s=self.habits.window_s,
            dwell_s=self.habits.dwell_s,
            retry_s=self.habits.retry_s,
            early=early_s > 0,
        )
        after = {assignment.model: assignment for assignment in claims.assignments}
        for model in [model for model in self.deeds if model not in after]:
            deed = self.deeds.pop(model)
            self.moved(model, deed.assignment.stage, None)
            self.engines.forget(model)
        for model, assignment in after.items():
            self._become(model, assignment, view, plan)
        if early_s > 0:
            return early_s if claims.again_s is None else min(early_s, claims.again_s)
        return claims.again_s

    def _become(self, model: str, assignment: Assignment, view: MeshView, plan: MeshPlan) -> None:
        before = self.deeds.get(model)
        stage = before.assignment.stage if before is not None else None
        if before is not None and assignment.stage is stage:
            before.assignment = assignment
        else:
            self.deeds[model] = Deed(assignment, self.clock.now_s)
            self.moved(model, stage, assignment.stage)
        self.terms[model] = max(self.terms.get(model, 0), assignment.term)
        if assignment.stage is Stage.LOADING and self.engines.state(model) is Engine.ABSENT:
            self.loading(model, plan, view)
            self.engines.start(self.models[model], assignment.memory, fails=self.habits.fails)
        elif assignment.stage is Stage.DRAINING:
            self.engines.stop(model)

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        return tuple(deed.assignment for deed in self.deeds.values())

    def record(self, session: str, core: bool) -> NodeRecord:
        machine = self.machine
        return NodeRecord(
            id=machine.id,
            name=machine.name,
            role="standby" if machine.standby else "auto",
            addresses=(f"{machine.name}:9338",),
            core=core,
            session=session,
            software="meshd sim",
            engine=machine.engine,
            devices=machine.devices,
            held=machine.held,
            wishes=machine.wishes,
            offers=machine.offers,
            assignments=self.assignments,
        )
