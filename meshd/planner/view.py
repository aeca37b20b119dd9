"""What the planner sees: every node's hardware, engine, models and running assignments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshd.models.facts import GgufFacts
from meshd.node.inventory import Gpu, Hardware
from meshd.node.speed import Speed
from meshd.planner.lent import Lent
from meshd.planner.plan import Decision


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model of the config as this node finds it.

    :ivar facts: None when the file is not here or not readable; `problem` then says why.
    :ivar identity: of the content on disk (paths, sizes, times), so that a replaced file replans.
    :ivar modified_s: Unix time of the newest of its files.
    :ivar fingerprint: of its content, the same on every machine (`models.fingerprint`).
    """

    model: str
    facts: GgufFacts | None
    identity: str = ""
    problem: str = ""
    modified_s: int = 0
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """One decision that is carried out now.

    :ivar resident: its memory is already taken, so that the measured free memory lacks it.
    :ivar loading: some of it may be taken, nobody knows how much.
    """

    decision: Decision
    identity: str
    resident: bool
    loading: bool = False


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Of a model that ran out of memory again and again.

    :ivar ram_bytes: what may be planned for it in RAM at most.
    :ivar failed_bytes: what was planned and did not suffice.
    """

    ram_bytes: int
    failed_bytes: int


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node.

    :ivar gpus: those that it may and can use: pinned, present, and with a backend.
    :ivar name: for people.
    :ivar lent: what it lends to others' splits; of those in `lent_resident` (instances) the memory
        is taken already.
    :ivar speeds: of its devices, those that were measured.
    :ivar ceilings: by model.
    """

    id: str
    hardware: Hardware
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    engine: bool = True
    candidates: tuple[Candidate, ...] = ()
    running: tuple[Running, ...] = field(default=())
    name: str = ""
    lent: tuple[Lent, ...] = ()
    lent_resident: frozenset[str] = frozenset()
    speeds: tuple[Speed, ...] = ()
    ceilings: Mapping[str, Ceiling] = field(default_factory=dict)

    def candidate(self, model: str) -> Candidate | None:
        return next((c for c in self.candidates if c.model == model), None)

    def speed(self, device: str) -> Speed | None:
        return next((one for one in self.speeds if one.device == device), None)


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Every node's published record, and which of them we are."""

    me: str
    nodes: tuple[NodeView, ...]
