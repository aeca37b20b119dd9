"""One model on its way to a decision: what runs, what may, what comes and what goes."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshd.mesh.record import Assignment, MemoryUse, Stage
from meshd.planner.eligible import Eligible
from meshd.planner.holding import Holding
from meshd.planner.mesh_plan import Release, Replica
from meshd.planner.ranking import Order
from meshd.planner.wishes import Wanted


@dataclass(slots=True)
class Runs:
    """A replica that loads or serves now.

    :ivar memory: of its node. :ivar held: of every node, that of a split's members too.
    """

    node: str
    place: Order
    assignment: Assignment
    alive: bool
    memory: tuple[MemoryUse, ...]
    held: Holding

    @property
    def order(self) -> tuple[bool, bool, Order]:
        return (not self.alive, self.assignment.stage is not Stage.READY, self.place)


@dataclass(slots=True)
class Case:
    """One model while it is being decided."""

    asked: Wanted
    may: Eligible
    rate: float
    number: int = 0
    running: list[Runs] = field(default_factory=list)
    strays: list[tuple[Runs, str]] = field(default_factory=list)
    coming: list[Replica] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.running) + len(self.coming)

    def has(self, node: str) -> bool:
        here = (runs.node for runs in self.running)
        coming = (replica.node for replica in self.coming)
        strays = (runs.node for runs, _ in self.strays)
        leaving = (release.node for release in self.releases)
        return node in (*here, *coming, *strays, *leaving)

    def spares(self, runs: Runs) -> bool:
        """Whether the model's minimum is served without this replica."""
        others = sum(
            one.alive and one.assignment.stage is Stage.READY
            for one in self.running
            if one is not runs
        )
        return others >= self.asked.least
