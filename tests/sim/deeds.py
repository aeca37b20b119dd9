"""What nodes do about models, judged when it is done by somebody who knows all."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.mesh.record import Assignment, NodeRecord, Stage
from meshd.mesh.view import MeshView
from meshd.planner.claims import Engine
from meshd.planner.mesh_plan import MeshPlan
from tests.sim.findings import Bounds, Findings
from tests.sim.views import Views

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.world import World

SEES = (Stage.LOADING, Stage.READY)
IN_TOUCH_S = 3.0
"""After which cores are linked and know each other's clients, where no message is lost."""


@dataclass(slots=True)
class Tally:
    """:ivar causes: things that happened that may make a replica start somewhere."""

    starts: int = 0
    causes: int = 0
    first_starts: int = 0


class Deeds:
    """Starts, stops, and whether what is wanted is served."""

    def __init__(self, world: World, bounds: Bounds, findings: Findings, views: Views) -> None:
        self.world = world
        self.bounds = bounds
        self.fail = findings.fail
        self.views = views
        self.tally = Tally()
        self._unserved_s: dict[str, float] = {}
        self._given_back: dict[tuple[str, str], tuple[float, bool, int]] = {}
        self._hits: defaultdict[str, int] = defaultdict(int)

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
        rivals = self._rivals(node, model, view)
        strays = len(placement.releases) if placement is not None else 0
        if len(rivals) >= wanted + strays:
            self.fail(
                "no-double-promotion",
                f"{node.id} starts {model}, wanted {wanted}, runs on {sorted(rivals)[:4]}",
            )

    def _rivals(self, node: SimNode, model: str, view: MeshView) -> list[str]:
        """Who runs it, and must be known to do so by a node that is about to."""
        others = (
            other
            for other in self.world.nodes
            if other.id != node.id
            and (deed := other.brain.deeds.get(model)) is not None
            and deed.assignment.stage in SEES
        )
        if self.bounds.nothing_lost:
            return [other.id for other in others if self._in_touch(node, other)]
        part = self.views.part(node.id)
        records = {member.id: member.record for member in view.members}
        return [
            other.id
            for other in others
            if part is not None
            and self.views.part(other.id) == part
            and (record := records.get(other.id)) is not None
            and _knows(record, other.brain.deeds[model].assignment)
        ]

    def _in_touch(self, one: SimNode, other: SimNode) -> bool:
        """Whether claims must keep the one from doing what the other does: both are connected for
        long enough, or the one is new and the first core that it tries would answer it.
        """
        network, since_s = self.world.network, self.world.clock.now_s - IN_TOUCH_S
        station, rival = network.stations[one.id], network.stations[other.id]
        if not network.attached(rival) or rival.attached_s > since_s:
            return False
        if network.attached(station) and station.attached_s <= since_s:
            return network.connected(one.id, other.id)
        if station.core or station.next_core:
            return False
        core = network.next_core(station)
        return (
            core.attached_s <= since_s
            and network.reach(station, core)
            and rival.home in network.component(core.id)
        )

    def look(self, groups: dict[object, set[str]]) -> None:
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


def _knows(record: NodeRecord, assignment: Assignment) -> bool:
    """Whether the newest record that was heard tells of it."""
    known = record.assignment(assignment.model)
    return known is not None and known.term == assignment.term
