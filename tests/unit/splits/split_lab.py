"""Whole nodes under a virtual clock: the real pipeline, deeds and split watch of each; engines,
guards and weight caches that are only said to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from meshd import pipeline
from meshd.config.settings import Config
from meshd.deeds import Deeds
from meshd.engine.build import Binary
from meshd.guard.status import End, GuardStatus, PeerStatus
from meshd.mesh.record import NodeRecord, RttRecord
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.mesh_share import Around
from meshd.own_record import Moving, Self
from meshd.paths import under
from meshd.pipeline import Observation, Proposal
from meshd.planner.lent import Lent
from meshd.planner.view import Candidate, Running
from meshd.seeding.wish import SeedStage, SeedState
from meshd.shard_wants import Shards
from meshd.split_share import Splits, addresses_of
from meshd.split_watch import SplitWatch
from meshd.units.render import render_dropin
from meshd.units.spec import EngineKind, EngineSpec, EngineState, EngineStatus
from tests.unit.test_supervisor import BUILD

STEP_S = 0.5
LOAD_S = 2.0
SEED_S = 1.0
RPC_BUILD = replace(
    BUILD,
    version="0.7.0",
    package="1:0.7.0+dfsg-2",
    build=11669,
    rpc_protocol=(8, 0, 0),
    binaries=(
        *BUILD.binaries,
        Binary("ggml-rpc-server", "/usr/libexec/x/llama/bin/ggml-rpc-server", "0"),
    ),
)


@dataclass
class Process:
    spec: EngineSpec
    since_s: float
    pid: int


class Sharding(Protocol):
    """A box's workshop of expert shards."""

    def now(self) -> Shards: ...

    def took(self, proposal: Proposal) -> None: ...


@dataclass
class Box:
    """One node. :ivar lost: what a guard of its counted, by member and the guard's pid."""

    id: str
    config: Config
    observation: Observation
    lab: SplitLab
    running: tuple[Running, ...] = ()
    lent: tuple[Lent, ...] = ()
    processes: dict[str, Process] = field(default_factory=dict)
    lost: dict[tuple[str, int], int] = field(default_factory=dict)
    unreached: set[str] = field(default_factory=set)
    seeding: dict[str, float] = field(default_factory=dict)
    last: Proposal | None = None
    record: NodeRecord | None = None
    pids: int = 0
    down: bool = False
    draining: bool = False
    shards: Sharding | None = None

    def __post_init__(self) -> None:
        self.born_again()

    def born_again(self) -> None:
        """A new brain, with what its files remember; the others still have its record."""
        self.deeds = Deeds(lambda: self.lab.now_s)
        self.watch = SplitWatch(lambda: self.lab.now_s)
        self.last, self.born_s = None, self.lab.now_s

    def engines(self) -> tuple[EngineStatus, ...]:
        paths = under(Path("/lab") / self.id)
        return tuple(
            EngineStatus(
                one.spec.kind,
                one.spec.name,
                EngineState.RUNNING,
                render_dropin(one.spec, paths),
                one.pid,
            )
            for _, one in sorted(self.processes.items())
        )

    def process(self, kind: EngineKind, name: str) -> Process | None:
        return self.processes.get(f"mesh-{kind}@{name}.service")

    def lose(self, member: str, model: str) -> None:
        """Its guard finds that a member fell silent."""
        guard = self.process(EngineKind.GUARD, model)
        assert guard is not None
        self.lost[member, guard.pid] = self.lost.get((member, guard.pid), 0) + 1

    def answers(self, unit: str, pid: int | None) -> bool:
        one = self.processes.get(unit)
        return one is not None and one.pid == pid and self.lab.now_s - one.since_s >= LOAD_S

    def guards(self) -> dict[str, GuardStatus]:
        found = {}
        for one in self.processes.values():
            if one.spec.kind is EngineKind.GUARD:
                found[one.spec.name] = self.lab.status_of(self, one)
        return found

    def seeds(self) -> dict[str, SeedState]:
        for one in self.lent:
            self.seeding.setdefault(one.name, self.lab.now_s)
        return {
            name: SeedState(
                SeedStage.READY if self.lab.now_s - since_s >= SEED_S else SeedStage.SEEDING
            )
            for name, since_s in self.seeding.items()
        }

    def step(self) -> None:
        view = self.lab.view(self.id)
        early = self.lab.now_s - self.born_s < 1.0
        seen = (self.engines(), self.guards(), self.seeds())
        self._apply(self.think(view, *seen, early=early, draining=self.draining))

    def think(
        self,
        view: MeshView,
        engines: tuple[EngineStatus, ...],
        guards: dict[str, GuardStatus],
        seeds: dict[str, SeedState],
        *,
        early: bool,
        draining: bool = False,
    ) -> Proposal:
        """One pass, remembered and said, and not carried out yet."""
        running = pipeline.with_residency(self.running, engines, self.answers)
        now = pipeline.engines_now(running, engines, self.last)
        troubles = self.watch.look(
            [one.decision for one in running if one.decision.links], view, guards
        )
        own = view.member(self.id)
        around = Around(
            self=Self(self.id, (f"{self.id}.lab:9338",), "s"),
            view=view,
            calm_s=self.lab.calm_s(),
            own=self.deeds.own(now),
            terms=dict(self.deeds.terms),
            drained=self.deeds.drained(None),
            moving=Moving(rtt=self.lab.rtt(self.id), draining=draining),
            before=own.record if own else None,
            early=early,
            splits=Splits(self.lent, guards, seeds, troubles, addresses_of(view, {})),
            shards=self.shards.now() if self.shards else Shards(problem="none are made here"),
        )
        paths = under(Path("/lab") / self.id)
        proposal = pipeline.propose(self.config, self.observation, engines, running, paths, around)
        assert proposal.share is not None
        self.last, self.running, self.lent = proposal, proposal.running, proposal.lent
        self.record = proposal.share.record
        self.deeds.took(self.record.assignments)
        if self.shards is not None:
            self.shards.took(proposal)
        return proposal

    def _apply(self, proposal: Proposal) -> None:
        for action in proposal.actions:
            self.processes.pop(action.unit, None)
        units = {action.unit for action in proposal.actions}
        for spec in proposal.specs:
            if spec.unit in units:
                self.pids += 1
                self.processes[spec.unit] = Process(spec, self.lab.now_s, self.pids)


class SplitLab:
    """Boxes that hear each other at the next step."""

    def __init__(self, rtt_ms: float = 0.5) -> None:
        self.now_s = 1000.0
        self.rtt_ms = rtt_ms
        self.boxes: dict[str, Box] = {}
        self.gone: set[str] = set()
        # Members that say something and do nothing.
        self.strangers: tuple[NodeRecord, ...] = ()
        self.moved_s: float | None = None
        self.step_s = STEP_S

    def calm_s(self) -> float:
        """Since a box came or went; long ago, where nobody says otherwise."""
        return 10.0 if self.moved_s is None else self.now_s - self.moved_s

    def add(self, name: str, config: Config, observation: Observation) -> Box:
        box = self.boxes[name] = Box(name, config, observation, self)
        return box

    def view(self, me: str) -> MeshView:
        members = [
            MemberView(name, 1, Status.ALIVE, box.record)
            for name, box in self.boxes.items()
            if box.record is not None and name not in self.gone
            # It does not remember what it said in an earlier life.
            if name != me or box.last is not None
        ]
        members += [MemberView(one.id, 1, Status.ALIVE, one) for one in self.strangers]
        members.sort(key=lambda one: one.id)
        return MeshView(me, tuple(members), hash(tuple(members)))

    def rtt(self, me: str) -> tuple[RttRecord, ...]:
        return tuple(
            RttRecord(name, self.rtt_ms, self.rtt_ms, self.rtt_ms)
            for name in sorted(self.boxes)
            if name != me
        )

    def status_of(self, box: Box, guard: Process) -> GuardStatus:
        words = guard.spec.argv
        term = int(words[words.index("--term") + 1])
        base = GuardStatus(guard.spec.name, End(words[3]), guard.since_s, term)
        if base.end is End.MEMBER:
            up = box.process(EngineKind.RPC, guard.spec.name) is not None
            return replace(base, peers=(PeerStatus("host", "front", reached=up),))
        peers = []
        for index, word in enumerate(words):
            if word == "--local":
                local, _, rest = words[index + 1].partition("=")
                node = rest.partition("@")[0]
                peers.append(
                    PeerStatus(
                        node,
                        local,
                        reached=self._reaches(box, node, guard.spec.name, term),
                        silences=box.lost.get((node, guard.pid), 0),
                        last_trouble="a call was not answered",
                    )
                )
        return replace(base, peers=tuple(peers))

    def _reaches(self, box: Box, node: str, name: str, term: int) -> bool:
        other = self.boxes[node]
        if node in self.gone or other.down or node in box.unreached:
            return False
        door = other.process(EngineKind.GUARD, f"{name}.{box.id[:8]}")
        return door is not None and self.status_of(other, door).term == term

    def run(self, time_s: float) -> None:
        for _ in range(int(time_s / self.step_s)):
            self.step()

    def step(self) -> None:
        self.now_s += self.step_s
        for name, box in self.boxes.items():
            if name not in self.gone and not box.down:
                box.step()

    def until(self, holds: Callable[[], object], within_s: float) -> float:
        """Seconds until it holds."""
        began_s = self.now_s
        while not holds():
            assert self.now_s - began_s < within_s, f"not within {within_s} s: {self.story()}"
            self.step()
        return self.now_s - began_s

    def die(self, *names: str) -> None:
        if self.moved_s is not None:
            self.moved_s = self.now_s
        for name in names:
            self.gone.add(name)
            self.boxes[name].processes.clear()

    def hosts(self, model: str) -> list[str]:
        """Boxes whose engine of a split answers."""
        return [
            name
            for name, box in self.boxes.items()
            if name not in self.gone
            and (one := box.process(EngineKind.LLAMA, model)) is not None
            and box.answers(one.spec.unit, one.pid)
        ]

    def story(self) -> Iterable[object]:
        return [
            (name, sorted(box.processes), box.record and box.record.assignments,
             box.record and box.record.leases, box.last and box.last.waiting)
            for name, box in self.boxes.items()
        ]  # fmt: skip


def observation(hardware: object, name: str, *candidates: Candidate) -> Observation:
    assert hasattr(hardware, "hostname")
    return Observation(
        replace(hardware, hostname=name),  # type: ignore[type-var]
        RPC_BUILD,
        "",
        candidates,
    )
