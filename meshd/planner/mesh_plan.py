"""What the mesh as a whole should run, and why: the answer that every node computes alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from meshd.mesh.record import MemoryUse, Part, Stage
from meshd.planner.plan import Code, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Replica:
    """One node that runs a model, or should.

    :ivar stage: how far it is; None when it is not there yet.
    :ivar memory: what it uses of that node, or would. :ivar parts: of a split, whose host it is.
    """

    node: str
    stage: Stage | None
    reason: Reason
    memory: tuple[MemoryUse, ...] = ()
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Excluded:
    """A node that may not take a model now."""

    node: str
    code: Code
    text: str


@dataclass(frozen=True, slots=True)
class Release:
    """A replica, or a claim to one, that its node should give back.

    :ivar in_favour_of: the model that needs its memory: nothing is given back before that one's
        claim has stood its time. Empty when it goes for its own sake.
    """

    model: str
    node: str
    code: Code
    text: str
    in_favour_of: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """One model. :ivar fingerprint: the content that every replica has; empty when nobody has any.

    :ivar context: tokens a request as the configuration asks, 0 for auto; ``slots`` likewise.
    :ivar demand: requests a minute that this was decided for.
    :ivar wanted: replicas that there should be.
    :ivar replicas: those that are and those that should come, best first.
    :ivar excluded: the first of those that may not take it; `excluded_more` counts the others.
    :ivar blockers: why there are fewer than wanted, and ``next_step`` what a person can do.
    :ivar notes: what is worth knowing and stops nothing.
    """

    model: str
    fingerprint: str = ""
    context: int = 0
    slots: int = 0
    quality: str = "exact"
    aliases: tuple[str, ...] = ()
    demand: float = 0.0
    wanted: int = 0
    replicas: tuple[Replica, ...] = ()
    releases: tuple[Release, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    excluded_more: int = 0
    blockers: tuple[Reason, ...] = ()
    next_step: str = ""
    notes: tuple[str, ...] = ()

    def replica(self, node: str) -> Replica | None:
        return next((replica for replica in self.replicas if replica.node == node), None)


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """One placement for each model that somebody's configuration names, in the order of decision.

    :ivar orphans: replicas of models that nobody's configuration names any more.
    """

    placements: tuple[Placement, ...] = ()
    orphans: tuple[Release, ...] = ()
    _by_node: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_node: dict[str, tuple[str, ...]] = {}
        for placement in self.placements:
            for replica in placement.replicas:
                by_node[replica.node] = (*by_node.get(replica.node, ()), placement.model)
        object.__setattr__(self, "_by_node", MappingProxyType(by_node))

    def placement(self, model: str) -> Placement | None:
        return next((one for one in self.placements if one.model == model), None)

    def models_of(self, node: str) -> tuple[str, ...]:
        return self._by_node.get(node, ())


def duties(plan: MeshPlan, node: str) -> tuple[str, ...]:
    """The models that this node should run, most important first."""
    return plan.models_of(node)


def releases(plan: MeshPlan, node: str) -> tuple[Release, ...]:
    """What this node should give back, each with its reason."""
    placed = (release for placement in plan.placements for release in placement.releases)
    return tuple(r for r in (*placed, *plan.orphans) if r.node == node)
