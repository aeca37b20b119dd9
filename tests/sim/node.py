"""One simulated node: a real `Member` over the simulated network, a brain, engines, a gateway."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.mesh.bus import Ask, Put
from meshd.mesh.demand import DemandCounter
from meshd.mesh.member import Member
from meshd.mesh.record import Stage
from meshd.mesh.view import MeshView
from meshd.planner.mesh_plan import MeshPlan
from tests.sim.brain import Brain
from tests.sim.clock import Event
from tests.sim.engines import Engines
from tests.sim.fleet import Machine
from tests.sim.keys import SimSigner
from tests.sim.planning import COLD, Heat

if TYPE_CHECKING:
    from tests.sim.world import World

TICK_LEAST_S = 0.01
TICK_SLACK_S = 0.02
UNANSWERED_MOST = 2
REOPEN_PAUSE_S = 10.0
"""As `mesh.session` does: two questions to a core without an answer, and another one is tried."""


@dataclass(slots=True)
class Disk:
    """What outlives the process. :ivar incarnation: the last one used."""

    incarnation: int = 0


class SimNode:
    """:ivar member: None while its process is not there."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.world = world
        self.machine = machine
        self.id = machine.id
        self.clock = world.clock
        self.member: Member | None = None
        self.disk = Disk()
        self.engines = Engines(machine, self.clock, world.seed, self.engine_changed)
        self.brain = Brain(
            machine,
            world.fleet.models,
            self.clock,
            self.engines,
            world.settings.habits,
            self._loading,
            self._moved,
        )
        self.counter = DemandCounter()
        self.plan: MeshPlan | None = None
        self.session = ""
        self.sessions: set[str] = set()
        self.process = 0
        self._tick: Event | None = None
        self._pass: Event | None = None
        self._again: Event | None = None
        self._reopened_s = -REOPEN_PAUSE_S
        self._dirty = True
        self._said: object = None
        self._heat = COLD
        self._weigh_s = 0.0

    # --- its process

    def start(self) -> None:
        self.process += 1
        self.disk.incarnation += 1
        self.session = f"{self.id}-{self.process}"
        self.sessions.add(self.session)
        self.counter = DemandCounter(now=self.clock.now_s)
        self.plan = None
        self.brain.restart()
        self.member = Member(
            SimSigner(self.machine.key),
            self.world.verifier,
            self.disk.incarnation,
            lambda: self.clock.now_s,
            random.Random(f"member {self.world.seed} {self.session}"),
            core=self.machine.core,
            decode=self.world.decode,
        )
        self.world.trace.note(self.clock.now_s, "start", self.id, self.disk.incarnation)
        self._publish()
        station = self.world.network.stations[self.id]
        station.on_session = self._on_session
        self.world.network.open(self.id, self)
        self.wake()

    def stop(self, *, clean: bool, engines_die: bool, hold_s: float = 0.0) -> None:
        """It ends: with a word (`hold_s`: that it will be back) or without."""
        assert self.member is not None
        self.world.trace.note(self.clock.now_s, "stop", self.id, clean, engines_die)
        if clean:
            if hold_s:
                self.member.hold(hold_s)
                self.world.watch.views.holds(self.id, hold_s)
            else:
                self.member.leave()
            self._perform()
        self.disk.incarnation = max(self.disk.incarnation, self.member.incarnation)
        self.member = None
        for event in (self._tick, self._pass, self._again):
            if event is not None:
                event.cancel()
        self._tick = self._pass = self._again = None
        self.world.network.close(self.id, clean=clean)
        if engines_die:
            self.brain.power_off()

    @property
    def running(self) -> bool:
        return self.member is not None

    def _on_session(self, up: bool) -> None:
        if self.member is not None:
            if up:
                self.member.session_up()
            else:
                self.member.session_down()
            self._perform()

    # --- what the network brings (`bus.Listener`)

    def heard(self, data: bytes) -> None:
        if self.member is not None:
            self.member.heard(data)
            self._perform()

    def asked(self, data: bytes) -> bytes | None:
        if self.member is None:
            return None
        reply = self.member.asked(data)
        self._perform()
        return reply

    def token(self, node: str, *, up: bool) -> None:
        if self.member is not None:
            self.member.token(node, up=up)
            self._perform()

    # --- what it does

    def _perform(self) -> None:
        """After everything that the member was told."""
        member = self.member
        assert member is not None
        for effect in member.drain():
            if isinstance(effect, Put):
                self.world.carriage.put(self.id, effect.data)
            else:
                self._ask(effect)
        due_s = self.clock.now_s + member.next_tick_s()
        if self._tick is None or self._tick.at_s > due_s + TICK_SLACK_S:
            if self._tick is not None:
                self._tick.cancel()
            self._tick = self.clock.after(max(due_s - self.clock.now_s, TICK_LEAST_S), self._ticks)
        if member.changed:
            self.wake()

    def _ticks(self) -> None:
        self._tick = None
        if self.member is None:
            return
        if self._paused:
            self._tick = self.clock.after(0.25, self._ticks)
            return
        if self.member.next_tick_s() <= 0:
            self.member.tick()
        self._perform()

    @property
    def _paused(self) -> bool:
        station = self.world.network.stations[self.id]
        return station.frozen or station.stalled

    def _ask(self, ask: Ask) -> None:
        process = self.process

        def answered(found: bytes | None) -> None:
            if self.member is None or self.process != process:
                return
            self.member.answered(ask.number, found)
            self._perform()
            if self.member.unanswered >= UNANSWERED_MOST:
                self._reopen()

        self.world.carriage.ask(self.id, ask.target, ask.data, ask.timeout_s, answered)

    def _reopen(self) -> None:
        if self.clock.now_s - self._reopened_s >= REOPEN_PAUSE_S:
            self._reopened_s = self.clock.now_s
            self.world.network.reopen(self.id)

    # --- demand

    def serve(self, requests: dict[str, int]) -> None:
        """What clients asked of this node's gateway."""
        if self.member is None or self._paused:
            return
        now_s = self.clock.now_s
        for model, number in requests.items():
            self.counter.count(model, number, tokens=200 * number, now=now_s)
        self.report()

    def report(self) -> None:
        if self.member is None or self._paused:
            return
        payload = self.counter.due(self.clock.now_s)
        if payload is not None:
            self.member.publish_demand(payload)
            self._perform()

    def rates(self) -> dict[str, float]:
        """Requests a minute by model, as this node reckons."""
        return dict(self._weigh().exact)

    def _weigh(self) -> Heat:
        if self.member is None:
            return COLD
        return self.world.planning.heat(self.member.demand_entries())

    # --- planning

    def wake(self) -> None:
        """Have a pass soon; many causes, one pass."""
        if self.member is not None and self._pass is None:
            habits = self.world.settings.habits
            delay_s = habits.rest_s
            if habits.beat_s:
                beats = math.ceil((self.clock.now_s + delay_s) / habits.beat_s)
                delay_s = beats * habits.beat_s - self.clock.now_s
            self._pass = self.clock.after(delay_s, self.think)

    def engine_changed(self) -> None:
        self._dirty = True
        self.wake()

    def think(self) -> None:
        """One pass of the brain: plan, claims, record."""
        self._pass = None
        if self.member is None:
            return
        if self._paused:
            self._pass = self.clock.after(0.25, self.think)
            return
        now_s = self.clock.now_s
        view = self.member.view()
        if now_s >= self._weigh_s:
            # A few phases only, so that nodes differ in what they know and still share work.
            every_s = self.world.settings.habits.weigh_s
            phase_s = (self.process + self.world.network.stations[self.id].index) % 3 * every_s / 3
            self._weigh_s = ((now_s - phase_s) // every_s + 1) * every_s + phase_s
            self._heat = self._weigh()
        plan = self.world.planning.plan(view, self._heat)
        roster = self.world.planning.roster(view)
        due = self._again is None or self._again.at_s <= now_s
        if plan is self.plan and roster == self.brain.roster and not self._dirty and not due:
            return
        self.plan, self._dirty = plan, False
        again_s = self.brain.step(view, roster, plan)
        if self._again is not None:
            self._again.cancel()
        weigh_s = self._weigh_s - now_s
        again_s = weigh_s if again_s is None else min(weigh_s, again_s)
        self._again = self.clock.after(max(again_s, 0.01), self.think_again)
        self._publish()

    def think_again(self) -> None:
        self._again = None
        if self.world.settings.habits.beat_s:
            self._dirty = True
            self.wake()
        else:
            self.think()

    def _publish(self) -> None:
        assert self.member is not None
        said = (self.session, self.brain.assignments)
        if said != self._said:
            self._said = said
            self.member.publish(self.brain.record(self.session, self.machine.core))
            self._perform()

    def _loading(self, model: str, plan: MeshPlan, view: MeshView) -> None:
        self.world.watch.deeds.loading(self, model, plan, view)

    def _moved(self, model: str, before: Stage | None, after: Stage | None) -> None:
        self.world.trace.note(self.clock.now_s, "deed", self.id, model, before, after)
        self.world.watch.deeds.moved(self, model, before, after)
