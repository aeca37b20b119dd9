"""What nodes see of each other, judged by somebody who knows all.

Once a second: of two nodes that were well and connected at each of the last `settle_s` looks, each
must see the other alive; who was gone or out of reach for as long, nobody may.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.mesh.intake import REBURIAL_S
from meshd.mesh.view import MeshView, Status
from tests.sim.findings import Bounds, Findings

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.world import World

LOOK_S = 1.0
DEMAND_APART = 0.1
"""A counter's age starts where it is heard: what came late by 3 s is off by 3.5 %."""
GONE = "gone"
VAGUE = "vague"
_FACES_KEPT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """What a view shows. :ivar seen: alive or suspect. ``incarnations``: of whom it shows."""

    alive: frozenset[str]
    seen: frozenset[str]
    incarnations: frozenset[tuple[str, int]]


@dataclass(slots=True)
class Belief:
    """What one process believed. :ivar highest: incarnation of each node, ever."""

    session: str
    face: Face | None = None
    highest: dict[str, int] = field(default_factory=dict)


class Views:
    """What every node sees, once a second."""

    def __init__(self, world: World, bounds: Bounds, findings: Findings) -> None:
        self.world = world
        self.bounds = bounds
        self.fail = findings.fail
        self._looks = int(bounds.settle_s / LOOK_S)
        self._label: dict[str, tuple[object, int]] = {}
        self._beliefs: dict[str, Belief] = {}
        self._session: dict[str, int] = {}
        self._missing: dict[tuple[str, str], tuple[float, float]] = {}
        self._risen: dict[str, int] = {}
        self._process: dict[str, int] = {}
        self._excused_s: dict[str, float] = {}
        self._faces: dict[int, Face] = {}

    def look(self) -> dict[object, set[str]]:
        """To be called every `LOOK_S`. :returns: who is well for long enough, by part."""
        groups: defaultdict[object, set[str]] = defaultdict(set)
        for node in self.world.nodes:
            self._refuted(node)
            self._believe(node)
            label = self._state(node)
            old, since = self._label.get(node.id, (GONE, 0))
            since = since + 1 if label == old else 1
            self._label[node.id] = (label, since)
            if label not in (GONE, VAGUE) and since >= self._looks:
                groups[label].add(node.id)
        for label, well in groups.items():
            self._judge(label, well)
        return groups

    def part(self, node: str) -> object | None:
        """Where it has been well for long enough to see right; None when it has not."""
        label, looks = self._label.get(node, (GONE, 0))
        return None if label in (GONE, VAGUE) or looks < self._looks else label

    def _state(self, node: SimNode) -> object:
        """Which part of the network it is well connected to, VAGUE when it is not, or GONE."""
        network = self.world.network
        station = network.stations[node.id]
        session, self._session[node.id] = self._session.get(node.id), station.session
        if session != station.session or (station.running and station.stalled):
            return VAGUE
        if not station.awake or not network.attached(station):
            return GONE
        if network.stations[station.home].dark:
            return VAGUE
        return self.world.part(station.home)

    def _judge(self, label: object, well: set[str]) -> None:
        # Forbidden is who has been gone, or in another part, for long enough.
        forbidden = {
            node
            for node, (other, looks) in self._label.items()
            if other not in (label, VAGUE)
            and looks >= self._looks
            and self._excused_s.get(node, 0.0) <= self.world.clock.now_s
        }
        for node in sorted(well):
            member = self.world.by_id[node].member
            assert member is not None
            face = self._face(member.view())
            if not well <= face.alive:
                for missing in sorted(well - face.alive):
                    self._miss(node, missing, suspect=missing in face.seen)
            if not face.seen.isdisjoint(forbidden):
                self.fail("dead-in-no-view", f"{node} still sees {min(face.seen & forbidden)}")

    def _refuted(self, node: SimNode) -> None:
        """Whoever buried a node in vain is not believed again for a while where its token is."""
        if node.member is None:
            return
        now, before = node.member.incarnation, self._risen.get(node.id, 0)
        self._risen[node.id] = now
        if now > before:
            if self.world.settings.faults.zombie:
                self.holds(node.id, REBURIAL_S)
            if self.bounds.no_false_death and node.process == self._process.get(node.id):
                self.fail("no-false-death", f"{node.id} was buried alive")
        self._process[node.id] = node.process

    def holds(self, node: str, for_s: float) -> None:
        """It asked to be waited for."""
        self._excused_s[node] = self.world.clock.now_s + for_s + self.bounds.settle_s

    def _miss(self, node: str, missing: str, *, suspect: bool) -> None:
        """One lost ping may make a suspect for a moment, and when halves meet, one's burials come
        before the other's refutations; it may not stay so.
        """
        last_s, since_s = self._missing.get((node, missing), (-1.0, 0.0))
        now_s = self.world.clock.now_s
        since_s = since_s if now_s - last_s <= LOOK_S * 1.5 else now_s
        self._missing[node, missing] = (now_s, since_s)
        patience_s = self.bounds.suspect_s if suspect else self.bounds.blink_s
        if now_s - since_s >= patience_s:
            how = "suspects" if suspect else "does not see"
            self.fail("alive-in-every-view", f"{node} {how} {missing} since {since_s:.0f} s")

    def _face(self, view: MeshView) -> Face:
        found = self._faces.get(view.digest)
        if found is None:
            if len(self._faces) > _FACES_KEPT:
                self._faces.clear()
            found = self._faces[view.digest] = Face(
                frozenset(m.id for m in view.members if m.status is Status.ALIVE),
                frozenset(m.id for m in view.members),
                frozenset((m.id, m.incarnation) for m in view.members),
            )
        return found

    def _believe(self, node: SimNode) -> None:
        """What a process believes of anybody's incarnation never falls, whether it saw that one all
        the while, buried it, or forgot it.
        """
        if node.member is None:
            return
        belief = self._beliefs.get(node.id)
        if belief is None or belief.session != node.session:
            belief = self._beliefs[node.id] = Belief(node.session)
        face = self._face(node.member.view())
        if face is belief.face:
            return
        news = face.incarnations - belief.face.incarnations if belief.face else face.incarnations
        belief.face = face
        for other, incarnation in sorted(news):
            highest = belief.highest.get(other, -1)
            if incarnation < highest:
                text = f"{node.id} believed {highest} of {other}, now {incarnation}"
                self.fail("incarnation-never-falls", text)
            belief.highest[other] = max(highest, incarnation)

    def written_by_others(self) -> None:
        """Every part is what its owner wrote last or before: no record that it never made."""
        for node in self.world.nodes:
            if node.member is None:
                continue
            for member in node.member.view().members:
                owner = self.world.by_id[member.id]
                if member.record.session not in owner.sessions:
                    self.fail("written-by-owner-only", f"{node.id} has {member.record.session}")

    def rest(self) -> list[tuple[str, str]]:
        """What is not as it must be after a time without events: rule and text."""
        parts: defaultdict[object, dict[int, str]] = defaultdict(dict)
        demand: dict[object, dict[str, float]] = {}
        found: list[tuple[str, str]] = []
        for node in self.world.nodes:
            label = self._state(node)
            if node.member is None or label in (GONE, VAGUE):
                continue
            view = node.member.view()
            parts[label].setdefault(view.digest, node.id)
            found += [
                ("quiet-is-calm", f"{node.id} sees {member.id} as {member.status}")
                for member in view.members
                if member.status is not Status.ALIVE
            ]
            rates = node.rates()
            first = demand.setdefault(label, rates)
            for model in sorted(first.keys() | rates.keys()):
                one, other = first.get(model, 0.0), rates.get(model, 0.0)
                if abs(one - other) > DEMAND_APART * max(one, other) + 0.01:
                    text = f"{node.id}: {model} {other:.4f}, others {one:.4f}"
                    found.append(("demand-equal", text))
        found += [
            ("views-equal", f"{len(digests)} views, by {sorted(digests.values())[:3]}")
            for digests in parts.values()
            if len(digests) > 1
        ]
        return found
