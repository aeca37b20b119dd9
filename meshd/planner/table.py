"""The mesh's memory while it is dealt out to models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from meshd.mesh.record import Stage
from meshd.planner.case import Case, Runs
from meshd.planner.eligible import Mesh, summed
from meshd.planner.holding import Holding, holding
from meshd.planner.mesh_plan import Release, Replica
from meshd.planner.plan import Code, Reason
from meshd.planner.ranking import Order, chance, order, rank
from meshd.planner.room import Room


class Table:
    """Every node's room and burden; what runs already is taken off."""

    def __init__(self, mesh: Mesh, cases: Sequence[Case]) -> None:
        self._mesh = mesh
        self._cases = cases
        self._rooms: dict[str, Room] = {}
        self._burden = dict.fromkeys(mesh.known, 0)
        self._running: dict[str, list[tuple[Case, Runs]]] = {}
        self._ranked: dict[str, list[list[str]]] = {}
        for case in cases:
            for runs in case.running:
                for node, _ in runs.held:
                    self._running.setdefault(node, []).append((case, runs))
            for runs in (*case.running, *(runs for runs, _ in case.strays)):
                self._hold(runs.held)

    def _hold(self, held: Holding, *, sign: int = 1) -> None:
        """Take the memory off, on every node; with sign -1 give it back."""
        for node, memory in held:
            # A member that is dead has nothing to deal out; its split's host will notice.
            if node in self._mesh.known:
                self._burden[node] += sign
                room = self._room(node)
                room.take(memory) if sign > 0 else room.give(memory)

    def _room(self, node: str) -> Room:
        room = self._rooms.get(node)
        if room is None:
            room = self._rooms[node] = Room(self._mesh.known[node].member.record.devices)
        return room

    def keep_claims(self, case: Case, number: int) -> None:
        """A node that is about to start a model comes before those that could: first come, first
        served, and of several that came at once the best.
        """
        model = case.asked.model
        claims = [
            order(case.asked, self._mesh.known[node])
            for node, one in self._mesh.assigned.get(model, {}).items()
            if one.stage is Stage.CLAIMED and node in case.may.nodes
        ]
        for claim in sorted(claims):
            node = claim[-1]
            if case.count >= number:
                return
            if not self._free_for(case, node):
                continue
            held = self._fit(model, node)
            if held is None and case.count < case.asked.least:
                held = self._evict(case, node)
            if held is not None:
                self._take(case, held, Stage.CLAIMED)

    def place(self, case: Case, number: int) -> None:
        """Give the model nodes until it has so many, or nobody is left."""
        while case.count < min(number, case.number):
            found = self._idle(case)
            if found is None and case.count < case.asked.least:
                found = self._cleared(case)
            if found is None:
                return
            self._take(case, found, None)

    def _best_first(self, case: Case) -> list[list[str]]:
        """The nodes that may take the model: equals together."""
        model = case.asked.model
        if model not in self._ranked:
            ranked: dict[int, list[str]] = {}
            for node in case.may.nodes:
                ranked.setdefault(rank(case.asked, self._mesh.known[node]), []).append(node)
            self._ranked[model] = [ranked[one] for one in sorted(ranked)]
        return self._ranked[model]

    def _idle(self, case: Case) -> Holding | None:
        """The best node with room: among equals the least burdened, then the nearest."""
        model = case.asked.model
        known = self._mesh.known
        for equals in self._best_first(case):
            for node in sorted(
                equals, key=lambda n: (self._burden[n], known[n].near, chance(model, n))
            ):
                if self._free_for(case, node):
                    held = self._fit(model, node)
                    if held is not None:
                        return held
        return None

    def _cleared(self, case: Case) -> Holding | None:
        """The node where the fewest and the least asked for replicas give way."""
        costs: list[tuple[int, float, Order]] = []
        for node in case.may.nodes:
            if self._free_for(case, node) and not self._running.keys().isdisjoint(
                self._nodes(case.asked.model, node)
            ):
                victims = self._victims(case, node)
                if victims is not None:
                    heat = sum(victim.rate for victim, _ in victims)
                    costs.append((len(victims), heat, order(case.asked, self._mesh.known[node])))
        if not costs:
            return None
        return self._evict(case, min(costs)[-1][-1])

    def _free_for(self, case: Case, node: str) -> bool:
        return self._mesh.known[node].alive and not case.has(node)

    def _nodes(self, model: str, node: str) -> tuple[str, ...]:
        """Whose memory it takes to have the model run there."""
        offer = self._mesh.offer(model, node)
        parts = offer.parts if offer is not None else ()
        return tuple(dict.fromkeys((node, *(part.node for part in parts))))

    def _fit(self, model: str, node: str) -> Holding | None:
        """Memory for it where it is asked for; a split's members have to be there."""
        offer = self._mesh.offer(model, node)
        if offer is None:
            return None
        if not offer.parts:
            memory = self._room(node).fit(summed(offer.memory))
            return None if memory is None else ((node, memory),)
        held = holding(node, summed(offer.memory), offer.parts, self._mesh.records)
        for member, memory in held:
            one = self._mesh.known.get(member)
            if one is None or not one.alive or one.member.record.draining:
                return None
            if not self._room(member).holds(memory):
                return None
        return held

    def _popular(self, case: Case, node: str) -> Iterator[tuple[Case, Runs]]:
        seen: list[Runs] = []
        for one in self._nodes(case.asked.model, node):
            for other, runs in self._running.get(one, ()):
                if other is case or runs not in other.running or not other.spares(runs):
                    continue
                if not any(runs is known for known in seen):
                    seen.append(runs)
                    yield other, runs

    def _victims(self, case: Case, node: str) -> list[tuple[Case, Runs]] | None:
        """Popular replicas there whose memory is enough, coldest first; None when it is not."""
        model = case.asked.model
        gone: list[tuple[Case, Runs]] = []
        coldest_first = sorted(
            self._popular(case, node), key=lambda pair: (pair[0].rate, pair[0].asked.model)
        )
        fits = False
        for pair in coldest_first:
            self._hold(pair[1].held, sign=-1)
            gone.append(pair)
            fits = self._fit(model, node) is not None
            if fits:
                break
        if fits:
            # One that was taken before a larger one may be needless now.
            for pair in tuple(gone[:-1]):
                self._hold(pair[1].held)
                if self._fit(model, node) is None:
                    self._hold(pair[1].held, sign=-1)
                else:
                    gone.remove(pair)
        for _, runs in gone:
            self._hold(runs.held)
        return gone if fits else None

    def _evict(self, case: Case, node: str) -> Holding | None:
        model = case.asked.model
        for other, runs in self._victims(case, node) or ():
            other.running.remove(runs)
            text = f"{model} is asked for by name and lacks its minimum"
            other.releases.append(
                Release(other.asked.model, runs.node, Code.GAVE_WAY, text, in_favour_of=model)
            )
            self._hold(runs.held, sign=-1)
        return self._fit(model, node)

    def _take(self, case: Case, held: Holding, stage: Stage | None) -> None:
        node, memory = held[0]
        offer = self._mesh.offer(case.asked.model, node)
        parts = offer.parts if offer is not None else ()
        if case.count < case.asked.least:
            reason = Reason(Code.MINIMUM, f"asked for by name, at least {case.asked.least}")
        else:
            reason = Reason(Code.IN_DEMAND, f"{case.rate:.3g} requests a minute")
        case.coming.append(Replica(node, stage, reason, memory, parts))
        self._hold(held)
