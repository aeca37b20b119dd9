"""A mesh in which everything goes wrong, and what has to hold all the same.

Beside `split_lab`: engines end when a connection of theirs does, memory that is used is missing
from what is free, views lag, nodes die and brains are born again without their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from meshd.mesh.record import LeaseStage, NodeRecord, Part
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.paths import Paths, under
from meshd.pipeline import Proposal
from meshd.seeding.wish import SeedStage, SeedState
from meshd.units.render import render_dropin
from meshd.units.spec import EngineKind, EngineSpec, EngineState, EngineStatus
from tests.unit.splits.split_lab import LOAD_S, SEED_S, STEP_S, Box, Process, SplitLab

SUSPECT_S = 1.0
DEAD_S = 4.0
LAG_MOST = 3
_EARLY_S = 2.0
_ALONE_EARLY_S = 12.0
# As often does a brain look although nothing happened.
_LOOK_S = 5.0

# How long what should not be may last: a death is noticed, views lag, a brain is new.
STRAY_S = DEAD_S + LAG_MOST * STEP_S + _EARLY_S + 2.0
OVERLAP_S = 40.0


@dataclass
class Engine(Process):
    """:ivar linked: by member, the rpc-server that it is connected to; None before it is.

    :ivar size_bytes: as planned. :ivar grows_bytes: what of it is missing from free memory.
    :ivar parts: of the split, an rpc-server's own.
    """

    text: str = ""
    linked: dict[str, int] | None = None
    restarts: int = 0
    size_bytes: int = 0
    grows_bytes: int = 0
    parts: tuple[Part, ...] = ()


@dataclass
class LifeBox(Box):
    """:ivar said: its records, the newest last. :ivar silent_s: since when its brain is away.

    :ivar blind: until when it does not hear whom. :ivar used_bytes: of its memory, by others.
    """

    lab: LifeLab
    said: list[tuple[float, NodeRecord]] = field(default_factory=list)
    silent_s: float | None = None
    blind: dict[str, float] = field(default_factory=dict)
    used_bytes: int = 0
    seeds_fail: bool = False
    draining: bool = False
    looked: object = None
    paths: Paths = field(init=False)
    look_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.paths = under(Path("/lab") / self.id)

    def power_off(self) -> None:
        """All that runs, and what /run remembers, is gone."""
        self.processes.clear()
        self.running, self.lent = (), ()
        self.seeding.clear()
        self.off()

    def off(self) -> None:
        """Its brain alone."""
        if self.silent_s is None:
            self.silent_s = self.lab.now_s

    def on(self) -> None:
        self.silent_s = None
        self.born_s = self.lab.now_s
        self.blind = {
            name: self.lab.now_s + STEP_S * self.lab.draw.choice((0.5, 1.5, 2.5, 3.5))
            for name in self.lab.boxes
        }
        self.looked = None
        self.lab.checks.forgets(self)
        self.born_again()

    def engines(self) -> tuple[EngineStatus, ...]:
        return tuple(
            EngineStatus(
                one.spec.kind,
                one.spec.name,
                EngineState.RUNNING if self.whole(one) else EngineState.BACKOFF,
                one.text,
                one.pid if self.whole(one) else None,
                restarts=one.restarts,
            )
            for _, one in sorted(self.processes.items())
            if isinstance(one, Engine)
        )

    def whole(self, one: Process) -> bool:
        return not isinstance(one, Engine) or one.linked is not None

    def answers(self, unit: str, pid: int | None) -> bool:
        one = self.processes.get(unit)
        return one is not None and self.whole(one) and super().answers(unit, pid)

    def seeds(self) -> dict[str, SeedState]:
        if not self.seeds_fail:
            return super().seeds()
        super().seeds()
        return {
            name: SeedState(
                SeedStage.UNSEEDED if self.lab.now_s - since_s > 4 * SEED_S else SeedStage.SEEDING
            )
            for name, since_s in self.seeding.items()
        }

    def step(self) -> None:
        self._measure()
        view = self.lab.view(self.id)
        guards = self.guards()
        seeds = self.seeds()
        engines = self.engines()
        ready = tuple(self.answers(one.unit, one.pid) for one in engines)
        early = self.early(view)
        inputs = (
            view.digest,
            engines,
            ready,
            guards,
            seeds,
            self.config,
            self.observation,
            self.draining,
            early,
        )
        if inputs == self.looked and self.lab.now_s < self.look_s:
            return
        self.looked = inputs
        proposal = self.think(view, engines, guards, seeds, early=early, draining=self.draining)
        assert proposal.share is not None
        assert self.record is not None
        again_s = proposal.share.again_s
        self.look_s = self.lab.now_s + min(_LOOK_S, _LOOK_S if again_s is None else again_s)
        self.lab.checks.said(self, self.record)
        self.lab.checks.does(self, proposal)
        self._apply(proposal)
        self.seeding = {one.name: self.seeding.get(one.name, self.lab.now_s) for one in self.lent}

    def early(self, view: MeshView) -> bool:
        there_s = self.lab.now_s - self.born_s
        return there_s < (_ALONE_EARLY_S if len(view.members) <= 1 else _EARLY_S)

    def _measure(self) -> None:
        taken = self.used_bytes
        for one in self.processes.values():
            if isinstance(one, Engine) and self.lab.fills(self, one):
                taken += one.grows_bytes
        hardware = self.observation.hardware
        free = max(0, hardware.ram.total_bytes - taken)
        if free != hardware.ram.available_bytes:
            ram = replace(hardware.ram, available_bytes=free)
            self.observation = replace(self.observation, hardware=replace(hardware, ram=ram))

    def _apply(self, proposal: Proposal) -> None:
        units = {action.unit for action in proposal.actions}
        for unit in units:
            self.processes.pop(unit, None)
        for spec in proposal.specs:
            if spec.unit in units:
                self.pids += 1
                self.processes[spec.unit] = self._started(spec, proposal)
        self.lab.checks.started(self, proposal, units)

    def _started(self, spec: EngineSpec, proposal: Proposal) -> Engine:
        text = render_dropin(spec, self.paths)
        one = Engine(spec, self.lab.now_s, self.pids, text)
        if spec.kind is EngineKind.LLAMA:
            decision = proposal.plan.decision(spec.model)
            assert decision is not None
            one.size_bytes, one.parts = decision.memory_bytes, decision.parts
            one.grows_bytes = sum(use.kv_bytes + use.compute_bytes for use in decision.memory)
        elif spec.kind is EngineKind.RPC:
            (lent,) = (each for each in proposal.lent if each.name == spec.name)
            one.size_bytes = one.grows_bytes = sum(part.size_bytes for part in lent.parts)
            one.parts = lent.parts
        if spec.kind is not EngineKind.LLAMA or not self.lab.links(self, one):
            one.linked = {}
        return one


class LifeLab(SplitLab):
    """:ivar lags: by who hears and who said it, how many steps late that is.

    :ivar suspects: until when a box is suspected by all.
    """

    def __init__(self, draw: Random) -> None:
        super().__init__()
        self.draw = draw
        self.lags: dict[tuple[str, str], int] = {}
        self.suspects: dict[str, float] = {}
        self.checks = Checks(self)
        self.events: list[str] = []
        self._members: dict[tuple[str, Status], MemberView] = {}
        self._views: dict[str, MeshView] = {}

    def all(self) -> Iterator[LifeBox]:
        for box in self.boxes.values():
            assert isinstance(box, LifeBox)
            yield box

    def box(self, name: str) -> LifeBox:
        box = self.boxes[name]
        assert isinstance(box, LifeBox)
        return box

    def view(self, me: str) -> MeshView:
        mine = self.box(me)
        members = tuple(
            found
            for name in sorted(self.boxes)
            if (found := self._member(mine, self.box(name))) is not None
        )
        kept = self._views.get(me)
        if kept is not None and list(map(id, kept.members)) == list(map(id, members)):
            return kept
        view = MeshView(me, members, hash(tuple((one.id, one.status, id(one)) for one in members)))
        self._views[me] = view
        return view

    def _member(self, mine: LifeBox, box: LifeBox) -> MemberView | None:
        if box is mine:
            # It does not remember what it said in an earlier life.
            record = box.record if box.last is not None else None
            return self._as(box.id, Status.ALIVE, record) if record is not None else None
        if self.now_s < mine.blind.get(box.id, 0.0) or not box.said:
            return None
        away_s = 0.0 if box.silent_s is None else self.now_s - box.silent_s
        if away_s > DEAD_S:
            return None
        suspect = away_s > SUSPECT_S or self.suspects.get(box.id, 0.0) > self.now_s
        late_s = self.lags.get((mine.id, box.id), 0) * STEP_S
        heard = [record for at_s, record in box.said if at_s < self.now_s - late_s]
        record = heard[-1] if heard else box.said[0][1]
        return self._as(box.id, Status.SUSPECT if suspect else Status.ALIVE, record)

    def _as(self, name: str, status: Status, record: NodeRecord) -> MemberView:
        kept = self._members.get((name, status))
        if kept is None or kept.record is not record:
            kept = self._members[name, status] = MemberView(name, 1, status, record)
        return kept

    def links(self, box: Box, engine: Process) -> dict[str, tuple[str, int]]:
        """Of a split's engine: its members, and the guard's term."""
        guard = box.process(EngineKind.GUARD, engine.spec.name)
        if engine.spec.kind is not EngineKind.LLAMA or "--rpc" not in engine.spec.argv:
            return {}
        if guard is None:
            return {"": ("", 0)}
        return {peer.node: (peer.node, guard.pid) for peer in self.status_of(box, guard).peers}

    def fills(self, box: Box, one: Engine) -> bool:
        """Whether what it needs is missing from what is free."""
        if one.spec.kind is EngineKind.LLAMA:
            return one.linked is not None and self.now_s - one.since_s >= LOAD_S
        if one.spec.kind is not EngineKind.RPC:
            return False
        return any(
            isinstance(engine, Engine)
            and engine.linked
            and engine.linked.get(box.id) == one.pid
            and self.now_s - engine.since_s >= LOAD_S / 2
            for other in self.boxes.values()
            for engine in other.processes.values()
        )

    def _reaches(self, box: Box, node: str, name: str, term: int) -> bool:
        if node not in self.boxes or box.id in self.boxes[node].unreached:
            return False
        return super()._reaches(box, node, name, term)

    def _connections(self) -> None:
        """An engine ends with every connection that it loses, and its guard says whose it was."""
        for box in self.all():
            for one in list(box.processes.values()):
                if not isinstance(one, Engine) or not (links := self.links(box, one)):
                    continue
                now: dict[str, int] | None = {}
                guard = box.process(EngineKind.GUARD, one.spec.name)
                reached = (
                    {peer.node: peer.reached for peer in self.status_of(box, guard).peers}
                    if guard is not None
                    else {}
                )
                for node in links:
                    rpc = (
                        self.boxes[node].process(EngineKind.RPC, f"{one.spec.name}.{box.id[:8]}")
                        if reached.get(node)
                        else None
                    )
                    if rpc is None or now is None:
                        now = None
                        continue
                    now[node] = rpc.pid
                if one.linked is None and now is not None:
                    box.pids += 1
                    one.linked, one.since_s, one.pid = now, self.now_s, box.pids
                    self.checks.linked(self, box, one)
                elif one.linked is not None and one.linked != now:
                    for node, pid in one.linked.items():
                        gone = now is None or now.get(node) != pid
                        if guard is not None and gone and not (now is None and reached.get(node)):
                            key = node, guard.pid
                            box.lost[key] = box.lost.get(key, 0) + 1
                    one.linked = None
                    one.restarts += 1

    def step(self) -> None:
        self.now_s += STEP_S
        self._connections()
        order = list(self.all())
        for box in order:
            if box.silent_s is None:
                box.step()
        for box in order:
            said = [record for _, record in box.said[-1:]]
            if box.silent_s is None and box.record is not None and box.record not in said:
                box.said = [*box.said[-LAG_MOST - 1 :], (self.now_s, box.record)]
        self.checks.look()


class Checks:
    """What has to hold at every step."""

    def __init__(self, lab: LifeLab) -> None:
        self._lab = lab
        self._terms: dict[tuple[str, str], int] = {}
        self._parts: dict[tuple[str, str, int], tuple[Part, ...]] = {}
        self._stray_s: dict[tuple[str, str], float] = {}
        self._double_s: dict[str, float] = {}

    def said(self, box: LifeBox, record: NodeRecord) -> None:
        for intent in record.intents:
            key = box.id, intent.model
            assert intent.term >= self._terms.get(key, 0), f"{key}: term went back"
            self._terms[key] = intent.term
            known = self._parts.setdefault((*key, intent.term), intent.parts)
            assert known == intent.parts, f"{key}: two arrangements in term {intent.term}"

    def forgets(self, box: LifeBox) -> None:
        """Of what does not run it counts from what others still know."""
        kept = {
            (box.id, one.decision.model)
            for one in box.running
            if box.process(EngineKind.GUARD, one.decision.model) is not None
        }
        gone = {key for key in self._terms if key[0] == box.id} - kept
        self._terms = {key: term for key, term in self._terms.items() if key not in gone}
        self._parts = {key: parts for key, parts in self._parts.items() if key[:2] not in gone}

    def linked(self, lab: LifeLab, box: LifeBox, engine: Engine) -> None:
        for node in engine.linked or ():
            rpc = lab.boxes[node].process(EngineKind.RPC, f"{engine.spec.name}.{box.id[:8]}")
            assert isinstance(rpc, Engine)
            wished = tuple(part for part in engine.parts if part.node == node)
            assert rpc.parts == wished, f"{node} lends {rpc.parts}, {box.id} wants {wished}"

    def does(self, box: LifeBox, proposal: Proposal) -> None:
        """Before it is applied."""
        share = proposal.share
        assert share is not None
        starts = {action.unit for action in proposal.actions}
        for spec in proposal.specs:
            if spec.kind is not EngineKind.LLAMA or spec.unit not in starts:
                continue
            decision = proposal.plan.decision(spec.model)
            assert decision is not None
            for member in decision.members:
                seen = share.view.member(member)
                assert seen is not None, f"{box.id} starts {spec.model} without {member}"
                assert any(
                    lease.stage is LeaseStage.READY
                    for lease in seen.record.leases
                    if (lease.host, lease.model, lease.term) == (box.id, spec.model, decision.term)
                ), f"{box.id} starts {spec.model} in term {decision.term} without {member}'s lease"

    def started(self, box: LifeBox, proposal: Proposal, units: set[str]) -> None:
        starts = [spec for spec in proposal.specs if spec.unit in units]
        engines = [one for one in box.processes.values() if isinstance(one, Engine)]
        size = sum(one.size_bytes for one in engines)
        reserve = box.config.node.reserve.ram_bytes
        room = box.observation.hardware.ram.total_bytes - box.used_bytes - reserve
        if any(box.processes[one.unit].spec.kind is not EngineKind.GUARD for one in starts):
            assert size <= room, f"{box.id}: {size >> 20} MiB run in {room >> 20}"
        ports = [
            word
            for one in engines
            for flag, word in zip(one.spec.argv, one.spec.argv[1:], strict=False)
            if (one.spec.kind, flag) in _PORTS
        ]
        ports = [word.partition("=")[0].rpartition(":")[2] for word in ports]
        assert len(ports) == len(set(ports)), f"{box.id}: two on one port {sorted(ports)}"

    def look(self) -> None:
        now_s = self._lab.now_s
        strays = set()
        for box in self._lab.all():
            if box.silent_s is not None:
                continue
            for one in box.processes.values():
                if one.spec.kind is EngineKind.RPC and not self._asked(box, one):
                    strays.add((box.id, one.spec.name))
        self._stray_s = {key: self._stray_s.get(key, now_s) for key in strays}
        for key, since_s in self._stray_s.items():
            assert now_s - since_s <= STRAY_S, f"nobody asks {key[0]} for {key[1]}"
        hosts: dict[str, list[str]] = {}
        for box in self._lab.all():
            for one in box.processes.values():
                if one.spec.kind is EngineKind.LLAMA:
                    hosts.setdefault(one.spec.model, []).append(box.id)
        doubles = {model for model, found in hosts.items() if len(found) > 1}
        self._double_s = {model: self._double_s.get(model, now_s) for model in doubles}
        for model, since_s in self._double_s.items():
            assert now_s - since_s <= OVERLAP_S, f"{hosts[model]} all run {model}"

    def _asked(self, box: LifeBox, rpc: Process) -> bool:
        for host in self._lab.all():
            if rpc.spec.name.endswith(f".{host.id[:8]}") and host.silent_s is None and host.said:
                return any(
                    part.node == box.id
                    for intent in host.said[-1][1].intents
                    if intent.model == rpc.spec.model
                    for part in intent.parts
                )
        return False


_PORTS = {
    (EngineKind.GUARD, "--listen"),
    (EngineKind.RPC, "--port"),
    (EngineKind.GUARD, "--local"),
}
