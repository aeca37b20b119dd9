"""Which nodes of the mesh run which models. Pure: one view and one demand, one answer everywhere.

What runs stays where it is. What is missing is placed in this order: models that somebody's
configuration asks for by name and that run nowhere; their further replicas; then what demand asks
for, hottest first, in memory that is idle. Only the first two make a popular replica give way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby

from meshd.mesh.record import MemoryUse, Stage
from meshd.mesh.view import MeshView
from meshd.planner.case import Case, Runs
from meshd.planner.eligible import (
    Known,
    Site,
    eligible,
    known_members,
    misplaced,
    site,
    summed,
)
from meshd.planner.explain import placement_of
from meshd.planner.heat import replicas_for
from meshd.planner.mesh_plan import MeshPlan, Release, Replica
from meshd.planner.plan import Code, Reason
from meshd.planner.room import Room
from meshd.planner.wishes import Wanted, wanted

_RUNS = (Stage.LOADING, Stage.READY)


def place_replicas(view: MeshView, demand: Mapping[str, float]) -> MeshPlan:
    """Decide for every model that somebody's configuration names.

    :param demand: requests a minute over the whole mesh, by model or alias; what is not finite
        or below zero counts as none.
    """
    known = known_members(view)
    cases = [_case(asked, known, demand) for asked in wanted(view)]
    table = _Table(known, cases)
    named = [case for case in cases if case.asked.least > 0]
    for case in named:
        table.keep_claims(case, case.asked.least)
    for case in named:
        if not case.count:
            table.place(case, 1)
    for case in named:
        table.place(case, case.asked.least)
    hottest_first = sorted(cases, key=lambda case: (-case.rate, case.asked.model))
    for case in hottest_first:
        table.keep_claims(case, case.number)
    for case in hottest_first:
        table.place(case, case.number)
    for case in cases:
        _give_back(case)
    names = {case.asked.model for case in cases}
    return MeshPlan(tuple(placement_of(case) for case in cases), tuple(_orphans(known, names)))


class _Table:
    """The mesh's memory while it is being dealt out."""

    def __init__(self, known: Mapping[str, Known], cases: list[Case]) -> None:
        self._known = known
        self._cases = cases
        self._rooms = {node: Room(one.member.record.devices) for node, one in known.items()}
        self._burden = dict.fromkeys(known, 0)
        for case in cases:
            for runs in (*case.running, *(runs for runs, _ in case.strays)):
                self._rooms[runs.site.node].take(runs.memory)
                self._burden[runs.site.node] += 1

    def keep_claims(self, case: Case, number: int) -> None:
        """A node that is about to start a model comes before those that could: first come, first
        served, and of several that came at once the best.
        """
        for candidate in case.may.sites:
            if case.count >= number:
                return
            claim = self._known[candidate.node].assignments.get(case.asked.model)
            if claim is None or claim.stage is not Stage.CLAIMED:
                continue
            if not self._free_for(case, candidate):
                continue
            memory = self._fit(candidate)
            if memory is None and case.count < case.asked.least:
                memory = self._evict(case, candidate)
            if memory is not None:
                self._take(case, candidate, memory, Stage.CLAIMED)

    def place(self, case: Case, number: int) -> None:
        """Give the model nodes until it has so many, or nobody is left."""
        while case.count < min(number, case.number):
            found = self._idle(case)
            if found is None and case.count < case.asked.least:
                found = self._cleared(case)
            if found is None:
                return
            self._take(case, *found, None)

    def _idle(self, case: Case) -> tuple[Site, tuple[MemoryUse, ...]] | None:
        """The best node with room: among equals the least burdened, then the nearest."""
        for _, equals in groupby(case.may.sites, key=lambda candidate: candidate.rank):
            order = sorted(equals, key=lambda c: (self._burden[c.node], c.tie))
            for candidate in order:
                if self._free_for(case, candidate):
                    memory = self._fit(candidate)
                    if memory is not None:
                        return candidate, memory
        return None

    def _cleared(self, case: Case) -> tuple[Site, tuple[MemoryUse, ...]] | None:
        """The node where the fewest and the least asked for replicas give way."""
        best: tuple[tuple[int, float, Site], Site] | None = None
        for candidate in case.may.sites:
            if not self._free_for(case, candidate):
                continue
            victims = self._victims(case, candidate)
            if victims is None:
                continue
            cost = (len(victims), sum(victim.rate for victim, _ in victims), candidate)
            if best is None or cost[:2] < best[0][:2]:
                best = (cost, candidate)
        if best is None:
            return None
        memory = self._evict(case, best[1])
        return None if memory is None else (best[1], memory)

    def _free_for(self, case: Case, candidate: Site) -> bool:
        return self._known[candidate.node].alive and not case.has(candidate.node)

    def _fit(self, candidate: Site) -> tuple[MemoryUse, ...] | None:
        offer = candidate.offer
        return None if offer is None else self._rooms[candidate.node].fit(summed(offer.memory))

    def _victims(self, case: Case, candidate: Site) -> list[tuple[Case, Runs]] | None:
        """Popular replicas there whose memory is enough, coldest first; None when it is not."""
        node = candidate.node
        popular = sorted(
            (
                (other, runs)
                for other in self._cases
                if other is not case
                for runs in other.running
                if runs.site.node == node and other.spares(runs)
            ),
            key=lambda pair: (pair[0].rate, pair[0].asked.model),
        )
        room, gone = self._rooms[node], []
        for other, runs in popular:
            room.give(runs.memory)
            gone.append((other, runs))
            if self._fit(candidate) is not None:
                break
        fits = bool(gone) and self._fit(candidate) is not None
        if fits:
            # One that was taken before a larger one may be needless now.
            for pair in tuple(gone[:-1]):
                room.take(pair[1].memory)
                if self._fit(candidate) is None:
                    room.give(pair[1].memory)
                else:
                    gone.remove(pair)
        for _, runs in gone:
            room.take(runs.memory)
        return gone if fits else None

    def _evict(self, case: Case, candidate: Site) -> tuple[MemoryUse, ...] | None:
        victims = self._victims(case, candidate)
        if victims is None:
            return None
        model = case.asked.model
        for other, runs in victims:
            other.running.remove(runs)
            text = f"{model} is asked for by name and lacks its minimum"
            other.releases.append(
                Release(other.asked.model, candidate.node, Code.GAVE_WAY, text, in_favour_of=model)
            )
            self._rooms[candidate.node].give(runs.memory)
            self._burden[candidate.node] -= 1
        return self._fit(candidate)

    def _take(
        self, case: Case, to: Site, memory: tuple[MemoryUse, ...], stage: Stage | None
    ) -> None:
        if case.count < case.asked.least:
            reason = Reason(Code.MINIMUM, f"asked for by name, at least {case.asked.least}")
        else:
            reason = Reason(Code.IN_DEMAND, f"{case.rate:.3g} requests a minute")
        case.coming.append(Replica(to.node, stage, reason, memory))
        self._rooms[to.node].take(memory)
        self._burden[to.node] += 1


def _case(asked: Wanted, known: Mapping[str, Known], demand: Mapping[str, float]) -> Case:
    may = eligible(asked, known)
    names = (asked.model, *asked.aliases)
    rate = sum(asks for name in names if 0 <= (asks := demand.get(name, 0.0)) < math.inf)
    case = Case(asked, may, rate)
    for one in known.values():
        assignment = one.assignments.get(asked.model)
        if assignment is None or assignment.stage not in _RUNS:
            continue
        offer = one.offers.get(asked.model)
        memory = summed(assignment.memory or (offer.memory if offer is not None else ()))
        runs = Runs(site(asked, one, offer), assignment, one.alive, memory)
        problem = misplaced(asked, one, assignment, may.fingerprint)
        if problem:
            case.strays.append((runs, problem))
        else:
            case.running.append(runs)
    case.running.sort(key=lambda runs: runs.order)
    case.number = replicas_for(rate, len(case.running), asked.least, asked.most)
    return case


def _give_back(case: Case) -> None:
    """Take leave of what is too many, the worst first, and never of the last that answers."""
    while True:
        alive = [runs for runs in case.running if runs.alive]
        if len(alive) <= case.number or not alive[-1].assignment.settled:
            break
        answering = sum(runs.assignment.stage is Stage.READY for runs in alive[:-1])
        if case.number and not answering:
            break
        worst = alive[-1]
        case.running.remove(worst)
        code, text = Code.SURPLUS, f"{case.number} wanted, {len(alive)} run"
        if not case.number:
            code, text = Code.NO_DEMAND, "hardly anybody asks for it any more"
        case.releases.append(Release(case.asked.model, worst.site.node, code, text))
    if not case.strays:
        return
    answered = any(runs.assignment.stage is Stage.READY and runs.alive for runs in case.running)
    kept: list[tuple[Runs, str]] = []
    for runs, problem in case.strays:
        # It goes when its successor answers, or at once where none will come.
        if answered or not case.count:
            case.releases.append(Release(case.asked.model, runs.site.node, Code.MISPLACED, problem))
        else:
            kept.append((runs, problem))
    case.strays = kept


def _orphans(known: Mapping[str, Known], names: set[str]) -> Iterator[Release]:
    for node, one in known.items():
        for model, assignment in one.assignments.items():
            if model not in names and assignment.stage in (*_RUNS, Stage.CLAIMED):
                yield Release(
                    model, node, Code.NOT_ASKED_FOR, "no node's configuration names it any more"
                )
