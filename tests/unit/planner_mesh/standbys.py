"""Some nodes, each with its own view, and a network that brings every message within a bound."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from meshd.mesh.record import Assignment, Stage
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.claims import CLAIM_WINDOW_S, Engine, Own, next_claims
from meshd.planner.mesh_plan import MeshPlan
from meshd.planner.replicas import place_replicas
from tests.unit.planner_mesh.meshes import node, offer, runs, wish

CORES = 4
LOAD_S = 2.0
SERVER = "id-server"


@dataclass
class Standby:
    name: str
    seen: dict[str, MemberView]
    versions: dict[str, int] = field(default_factory=dict)
    assignments: dict[str, tuple[Assignment, float]] = field(default_factory=dict)
    terms: dict[str, int] = field(default_factory=dict)
    started_at: float | None = None
    changed_at: float = 0.0
    again_at: float = 0.0
    dead: bool = False


class World:
    """One run. :ivar starts: who started the model's engine, and when."""

    def __init__(
        self,
        seed: int,
        count: int = 20,
        *,
        delay_s: float = CLAIM_WINDOW_S,
        window_s: float = CLAIM_WINDOW_S,
        breaks: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.delay_s = delay_s
        self.window_s = window_s
        self.breaks = breaks
        self.starts: list[tuple[float, str]] = []
        self.claims: set[str] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        # The members are kept with their plan, so that no other object gets their identity.
        self._plans: dict[tuple[int, ...], tuple[tuple[MemberView, ...], MeshPlan]] = {}
        wishes = [wish("m")]
        server = node("server", wishes=wishes, running=[runs("m")], status=Status.SUSPECT)
        members = [
            node(f"{i:02}", offer("m", speed=self.random.choice([20, 40, 80])), wishes=wishes)
            for i in range(count)
        ]
        self.nodes = {member.id: Standby(member.id, {}) for member in members}
        for standby in self.nodes.values():
            standby.seen = {member.id: member for member in members}
            standby.seen[SERVER] = server
        # Who hears through the same core knows and misses the same members at the same time.
        for core in range(CORES):
            behind = list(self.nodes.values())[core::CORES]
            elsewhere = [member for i, member in enumerate(members) if i % CORES != core]
            for late in self.random.sample(elsewhere, k=count // 3):
                delay_s = self._delay()
                for standby in behind:
                    del standby.seen[late.id]
                    self.later(delay_s, lambda s=standby, m=late: self._appear(s, m))
            delay_s = self._delay() / 3
            for standby in behind:
                self.later(delay_s, lambda s=standby: self._vanish(s, SERVER))

    def later(self, in_s: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + in_s, self._number, what))

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until_s

    def kill(self, name: str) -> None:
        """Everybody misses it within the delay; it does nothing any more."""
        self.nodes[name].dead = True
        for other in self.nodes.values():
            self.later(self._delay(), lambda o=other: self._vanish(o, name))

    def stages(self, stage: Stage) -> list[str]:
        return [
            name
            for name, one in self.nodes.items()
            if not one.dead and any(a.stage is stage for a, _ in one.assignments.values())
        ]

    def _delay(self) -> float:
        return self.random.uniform(0, self.delay_s)

    def _appear(self, standby: Standby, member: MemberView) -> None:
        if member.id not in standby.seen and not self.nodes[member.id].dead:
            standby.seen[member.id] = member
            standby.changed_at = self.now
            self.think(standby)

    def _vanish(self, standby: Standby, name: str) -> None:
        standby.seen.pop(name, None)
        standby.versions[name] = 1 << 30
        standby.changed_at = self.now
        self.think(standby)

    def _hear(self, standby: Standby, member: MemberView, version: int) -> None:
        if version <= standby.versions.get(member.id, 0):
            return
        standby.versions[member.id] = version
        if member.id not in standby.seen:
            standby.changed_at = self.now
        standby.seen[member.id] = member
        self.think(standby)

    def think(self, me: Standby) -> None:
        if me.dead:
            return
        own = [
            Own(assignment, self.now - since, self._engine(me))
            for assignment, since in me.assignments.values()
        ]
        answer = next_claims(
            self._plan(me),
            me.name,
            own,
            calm_s=self.now - me.changed_at,
            terms=me.terms,
            window_s=self.window_s,
        )
        before = {model: one for model, (one, _) in me.assignments.items()}
        after = {one.model: one for one in answer.assignments}
        if answer.again_s is not None and answer.again_s < LOAD_S:
            again_at = self.now + answer.again_s + 1e-9
            if not self.now < me.again_at <= again_at:
                me.again_at = again_at
                self.later(again_at - self.now, lambda: self.think(me))
        if before == after:
            return
        for model, one in after.items():
            old = before.get(model)
            me.terms[model] = max(one.term, me.terms.get(model, 0))
            if one.stage is Stage.CLAIMED:
                self.claims.add(me.name)
            if one.stage is Stage.LOADING and (old is None or old.stage is not one.stage):
                me.started_at = self.now
                self.starts.append((self.now, me.name))
                self.later(LOAD_S + 1e-6, lambda: self.think(me))
        me.assignments = {
            model: (
                one,
                self.now
                if model not in before or before[model].stage is not one.stage
                else me.assignments[model][1],
            )
            for model, one in after.items()
        }
        self._tell(me)
        self.think(me)

    def _plan(self, me: Standby) -> MeshPlan:
        """Equal views give equal plans, so most are computed once."""
        members = tuple(me.seen[name] for name in sorted(me.seen))
        key = tuple(map(id, members))
        if key not in self._plans:
            self._plans[key] = (members, place_replicas(MeshView(me.name, members), {}))
        return self._plans[key][1]

    def _engine(self, me: Standby) -> Engine:
        if me.started_at is None:
            return Engine.ABSENT
        if self.now - me.started_at < LOAD_S:
            return Engine.STARTING
        return Engine.FAILED if self.breaks(me.name) else Engine.ANSWERS

    def _tell(self, me: Standby) -> None:
        version = me.versions.get(me.name, 0) + 1
        me.versions[me.name] = version
        record = replace(
            me.seen[me.name].record, assignments=tuple(one for one, _ in me.assignments.values())
        )
        member = replace(me.seen[me.name], record=record)
        me.seen[me.name] = member
        for other in self.nodes.values():
            if other is not me and not other.dead:
                self.later(self._delay(), lambda o=other: self._hear(o, member, version))
