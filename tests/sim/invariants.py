"""What must hold whatever happens, watched from outside with the eyes of somebody who knows all.

Views are judged once a second: of two nodes that were well and connected at each of the last
`settle_s` looks, each must see the other alive; who was gone or out of reach for as long, nobody
may. Deeds are judged when they are done.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.mesh.intake import REBURIAL_S
from meshd.mesh.record import Stage
from meshd.mesh.view import MeshView, Status
from meshd.planner.claims import Engine
from meshd.planner.mesh_plan import MeshPlan

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.world import World

LOOK_S = 1.0
SEES = (Stage.LOADING, Stage.READY)
DEMAND_APART = 0.1
"""A counter's age starts where it is heard: what came late by 3 s is off by 3.5 %."""
GONE = "gone"
VAGUE = "vague"


@dataclass(frozen=True, slots=True)
class Violation:
    at_s: float
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.at_s:10.3f} s  {self.rule}: {self.text}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """:ivar settle_s: after which views must be right.

    :ivar suspect_s: for how long one that is well may be suspected for a lost ping, and for
        ``blink_s`` be missed altogether.
    :ivar served_s: beside its load, for a model that could be served: detection, grace, burial,
        claim, a pass of the planner, and one lost message made good by anti-entropy.
    :ivar starts_per_cause: engine starts a blow, a shift of demand, or a failed load may cause.
    :ivar no_false_death: nobody who lives may be buried: where nothing but crashes happens.
    """

    settle_s: float = 15.0
    suspect_s: float = 20.0
    blink_s: float = 3.0
    served_s: float = 30.0
    starts_per_cause: float = 3.0
    no_false_death: bool = False


@dataclass(slots=True)
class Tally:
    """:ivar causes: things that happened that may make a replica start somewhere."""

    starts: int = 0
    causes: int = 0
    first_starts: int = 0


class Watch:
    """:ivar found: all violations, at most a few of each rule."""

    def __init__(self, world: World, bounds: Bounds) -> None:
        self.world = world
        self.bounds = bounds
        self.found: list[Violation] = []
        self.counts: Counter[str] = Counter()
        self.tally = Tally()
        self.served_after_s: list[float] = []
        self._looks = int(bounds.settle_s / LOOK_S)
        self._label: dict[str, tuple[object, int]] = {}
        self._highest: dict[tuple[str, str], int] = {}
        self._session: dict[str, int] = {}
        self._missing: dict[tuple[str, str], tuple[float, float]] = {}
        self._risen: dict[str, int] = {}
        self._process: dict[str, int] = {}
        self._excused_s: dict[str, float] = {}
        self._faces: dict[int, tuple[frozenset[str], frozenset[str]]] = {}
        self._unserved_s: dict[str, float] = {}
        self._given_back: dict[tuple[str, str], tuple[float, bool, int]] = {}
        self._hits: defaultdict[str, int] = defaultdict(int)

    def fail(self, rule: str, text: str) -> None:
        self.counts[rule] += 1
        if self.counts[rule] <= 5:
            self.found.append(Violation(self.world.clock.now_s, rule, text))

    # --- views

    def look(self) -> None:
        """To be called every `LOOK_S`."""
        groups: defaultdict[object, set[str]] = defaultdict(set)
        for node in self.world.nodes:
            self._refuted(node)
            label = self._state(node)
            old, since = self._label.get(node.id, (GONE, 0))
            since = since + 1 if label == old else 1
            self._label[node.id] = (label, since)
            if label not in (GONE, VAGUE) and since >= self._looks:
                groups[label].add(node.id)
        for label, well in groups.items():
            self._judge(label, well)
        self._models(groups)

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
            alive, seen = self._face(member.view())
            if not well <= alive:
                for missing in sorted(well - alive):
                    self._miss(node, missing, suspect=missing in seen)
            if not seen.isdisjoint(forbidden):
                self.fail("dead-in-no-view", f"{node} still sees {min(seen & forbidden)}")

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

    def _face(self, view: MeshView) -> tuple[frozenset[str], frozenset[str]]:
        found = self._faces.get(view.digest)
        if found is None:
            if len(self._faces) > 64:
                self._faces.clear()
            found = self._faces[view.digest] = (
                frozenset(m.id for m in view.members if m.status is Status.ALIVE),
                frozenset(m.id for m in view.members),
            )
        return found

    def incarnations(self, observer: str, view: MeshView) -> None:
        """What anybody believes of a node's incarnation never falls while it believes anything."""
        for member in view.members:
            key = (observer, member.id)
            highest = self._highest.get(key, -1)
            if member.incarnation < highest:
                self.fail(
                    "incarnation-never-falls",
                    f"{observer} believed {highest} of {member.id}, now {member.incarnation}",
                )
            self._highest[key] = max(highest, member.incarnation)

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

    # --- models

    def warm(self) -> None:
        """The first placement is done: starts from now on have causes."""
        self.tally.first_starts = self.tally.starts

    def hit(self, node: str) -> None:
        """Something befell a node: what it runs may be placed anew."""
        self.tally.causes += 1
        for model in self.world.by_id[node].brain.deeds:
            self._hits[model] += 1
            self.tally.causes += 1

    def moved(self, node: SimNode, model: str, before: Stage | None, after: Stage | None) -> None:
        if after is Stage.DRAINING:
            now_s, detail = self.world.clock.now_s, node.brain.deeds[model].assignment.detail
            self.world.trace.note(now_s, "release", node.id, model, detail)
            # What gave way to another model may come back for what befalls that one.
            alone = "asked for by name" not in detail
            self._given_back[node.id, model] = (now_s, alone, self._cause(model, alone=alone))
        elif after is Stage.FAILED:
            self._hits[model] += 1
            self.tally.causes += 1

    def _cause(self, model: str, *, alone: bool) -> int:
        hits = self._hits[model] if alone else self.tally.causes
        return hits + self.world.clients.shifts

    def loading(self, node: SimNode, model: str, plan: MeshPlan, view: MeshView) -> None:
        """An engine is about to start here."""
        now_s = self.world.clock.now_s
        self.tally.starts += 1
        given_s, alone, cause = self._given_back.pop((node.id, model), (-1e9, True, 0))
        soon = now_s - given_s < self.world.settings.habits.dwell_s
        if soon and cause == self._cause(model, alone=alone):
            self.fail("no-oscillation", f"{node.id} gave {model} back at {given_s:.1f} s")
        placement = plan.placement(model)
        wanted = placement.wanted if placement is not None else 0
        label, looks = self._label.get(node.id, (GONE, 0))
        if label in (GONE, VAGUE) or looks < self._looks:
            return
        rivals = [
            member.id
            for member in view.members
            if member.id != node.id
            and self._label.get(member.id, (GONE, 0))[0] == label
            and self._label[member.id][1] >= self._looks
            and (deed := self.world.by_id[member.id].brain.deeds.get(model)) is not None
            and deed.assignment.stage in SEES
            and (known := member.record.assignment(model)) is not None
            and known.term == deed.assignment.term
        ]
        strays = len(placement.releases) if placement is not None else 0
        if len(rivals) >= wanted + strays:
            self.fail(
                "no-double-promotion",
                f"{node.id} starts {model}, wanted {wanted}, runs on {sorted(rivals)[:4]}",
            )

    def _models(self, groups: dict[object, set[str]]) -> None:
        """A model that is wanted, and could be served by a node that is well, is served in time."""
        now_s = self.world.clock.now_s
        best = max(groups.values(), key=len, default=set())
        if len(best) * 2 < len(self.world.nodes):
            self._unserved_s.clear()
            return
        served: set[str] = set()
        for node in best:
            for model, run in self.world.by_id[node].engines.runs.items():
                if run.state is Engine.ANSWERS:
                    served.add(model)
        for wanted in self.world.fleet.models.values():
            if wanted.name in served or not self.world.is_wanted(wanted.name):
                self._unserved_s.pop(wanted.name, None)
                continue
            able = self._able(wanted.name, best)
            since_s = self._unserved_s.get(wanted.name)
            if not able:
                self._unserved_s.pop(wanted.name, None)
            elif since_s is None:
                self._unserved_s[wanted.name] = now_s
            elif now_s - since_s > self.bounds.served_s + 2 * wanted.load_s:
                self.fail(
                    "served-in-time",
                    f"{wanted.name} has not answered for {now_s - since_s:.0f} s, {able} could",
                )
                self._unserved_s[wanted.name] = now_s

    def _able(self, model: str, well: set[str]) -> str:
        """A node that is well, has the file, and memory without taking it from anybody."""
        for machine in self.world.holders[model]:
            if machine.id not in well:
                continue
            node = self.world.by_id[machine.id]
            deed = node.brain.deeds.get(model)
            if deed is not None and deed.assignment.stage in (Stage.FAILED, Stage.DRAINING):
                continue
            offer = next(offer for offer in machine.offers if offer.model == model)
            for use in offer.memory:
                others = sum(
                    other.size_bytes
                    for name, one in node.brain.deeds.items()
                    if name != model
                    for other in one.assignment.memory
                    if other.device == use.device
                )
                if others + use.size_bytes <= machine.memory_bytes(use.device):
                    return machine.id
        return ""

    def settle_accounts(self) -> None:
        """At the end of a run: no more starts than there were causes for."""
        tally = self.tally
        allowed = tally.first_starts + self.bounds.starts_per_cause * (
            tally.causes + self.world.clients.shifts
        )
        if tally.starts > allowed:
            self.fail("no-oscillation", f"{tally.starts} starts, {allowed:.0f} had a cause")
