"""A whole mesh on one clock: nodes, network, clients, blows, and somebody who watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from meshd.mesh.record import NodeRecord
from meshd.mesh.view import MeshView
from meshd.planner.heat import WAKE
from tests.sim.brain import Habits
from tests.sim.carriage import Carriage
from tests.sim.churn import Blow, Kind, Rates, schedule
from tests.sim.clients import Clients, Taste
from tests.sim.clock import Clock
from tests.sim.faults import Faults
from tests.sim.findings import Bounds
from tests.sim.fleet import Machine, make_fleet
from tests.sim.invariants import Watch
from tests.sim.keys import SimVerifier
from tests.sim.network import Network, pair
from tests.sim.node import SimNode
from tests.sim.planning import Planning
from tests.sim.trace import Trace
from tests.sim.traffic import Traffic
from tests.sim.views import LOOK_S

PATIENCE_S = 15
"""How long after the calm until everything is at rest."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One run, but for its seed.

    :ivar start_s: over which the nodes are switched on.
    :ivar warm_s: from then until the first blow. ``churn_s``: of blows and clients.
    :ivar calm_s: afterwards, until everything must have come to rest.
    """

    nodes: int = 60
    models: int = 20
    start_s: float = 5.0
    warm_s: float = 90.0
    churn_s: float = 420.0
    calm_s: float = 90.0
    faults: Faults = field(default_factory=Faults)
    habits: Habits = field(default_factory=Habits)
    taste: Taste = field(default_factory=Taste)
    rates: Rates = field(default_factory=Rates)
    bounds: Bounds = field(default_factory=Bounds)

    @property
    def total_s(self) -> float:
        return self.start_s + self.warm_s + self.churn_s + self.calm_s


class World:
    """:param decode: of records, shared by all nodes (`sharing.shared`)."""

    def __init__(
        self, seed: int, settings: Settings, decode: Callable[[bytes, str], NodeRecord]
    ) -> None:
        self.seed = seed
        self.settings = settings
        self.decode = decode
        self.clock = Clock()
        self.trace = Trace()
        self.verifier = SimVerifier()
        self.planning = Planning()
        self.fleet = make_fleet(seed, settings.nodes, settings.models)
        self.network = Network(self.clock, seed, settings.faults, self.trace)
        self.carriage = Carriage(self.network, seed)
        self.clients = Clients(seed, list(self.fleet.models), settings.taste)
        self.holders: dict[str, list[Machine]] = {model: [] for model in self.fleet.models}
        for machine in self.fleet.machines:
            self.network.add(machine.id, core=machine.core, near_s=machine.near_s)
            for offer in machine.offers:
                if offer.memory:
                    self.holders[offer.model].append(machine)
        self.watch = Watch(self, settings.bounds)
        self.nodes = [SimNode(self, machine) for machine in self.fleet.machines]
        self.by_id = {node.id: node for node in self.nodes}
        self.gateways = self.nodes[:: max(1, len(self.nodes) // 20)]
        self.blows = 0
        self._busy: set[str] = set()
        self._parts: dict[str, str] = {}
        self._open_doors = True
        self._wanted_s = -1.0
        self._wanted: set[str] = set()

    # --- a run

    def run(self) -> None:
        """The whole of it: start, warm up, blows, calm, and the last judgement."""
        settings = self.settings
        self.start()
        self.clock.run_until(settings.start_s + settings.warm_s)
        self.watch.deeds.warm()
        cores = len(self.network.cores)
        begin_s, end_s = self.clock.now_s, self.clock.now_s + settings.churn_s
        for blow in schedule(self.seed, settings.nodes, cores, begin_s, end_s, settings.rates):
            self.clock.after(blow.at_s - begin_s, self._strike, blow)
        self.clock.run_until(end_s)
        self._open_doors = False
        self.clock.run_until(end_s + settings.calm_s)
        # A word that is under way just now is no unrest.
        for _ in range(PATIENCE_S):
            unrest = self.watch.views.rest()
            if not unrest:
                break
            self.clock.run_until(self.clock.now_s + 1.0)
        for rule, text in unrest:
            self.watch.findings.fail(rule, text)
        self.watch.settle()

    def start(self) -> None:
        step_s = self.settings.start_s / max(1, len(self.nodes))
        for place, node in enumerate(self.nodes):
            self.clock.after(place * step_s, node.start)
        self.clock.after(LOOK_S, self._look)
        taste = self.settings.taste
        if taste.total > 0:
            self.clock.after(self.settings.start_s + 20.0, self._ask_models)
            self.clock.after(self.settings.start_s + self.settings.warm_s, self._shift)
        self.clock.after(30.0, self._report)

    def _look(self) -> None:
        self._parts.clear()
        self.watch.look()
        self.clock.after(LOOK_S, self._look)

    def part(self, core: str) -> str:
        """A name for all cores that are linked with this one just now."""
        found = self._parts.get(core)
        if found is None:
            reached = self.network.component(core)
            found = min(reached)
            self._parts.update(dict.fromkeys(reached, found))
        return found

    # --- clients

    def _ask_models(self) -> None:
        if not self._open_doors:
            return
        for node in self.gateways:
            node.serve(self.clients.requests(1 / len(self.gateways)))
        self.clock.after(self.settings.taste.every_s, self._ask_models)

    def _shift(self) -> None:
        if not self._open_doors:
            return
        self.clients.shift()
        self.trace.note(self.clock.now_s, "shift", self.clients.raging)
        self.clock.after(self.settings.taste.shift_s, self._shift)

    def _report(self) -> None:
        """Gateways whose clients went quiet still look whether others reckon right."""
        for node in self.gateways:
            node.report()
        self.clock.after(30.0, self._report)

    def is_wanted(self, model: str) -> bool:
        """Whether somebody who is there names it, with a minimum or with demand for it."""
        now_s = self.clock.now_s
        if now_s != self._wanted_s:
            self._wanted_s = now_s
            named: set[str] = set()
            popular: set[str] = set()
            for node in self.nodes:
                if node.running:
                    for wish in node.machine.wishes:
                        (named if wish.least else popular).add(wish.model)
            core = next((n for n in self.nodes if n.machine.core and n.running), None)
            rates = core.rates() if core is not None and popular else {}
            self._wanted = named | {m for m in popular if rates.get(m, 0.0) > 2 * WAKE}
        return model in self._wanted

    # --- blows

    def _strike(self, blow: Blow) -> None:
        self.trace.note(self.clock.now_s, "blow", blow.kind, *blow.nodes)
        self.blows += 1
        nodes = [self.nodes[index] for index in blow.nodes]
        if blow.kind is Kind.SPLIT:
            self._split(blow, nodes)
        elif blow.kind is Kind.STORM:
            deed = Kind.HANG if blow.draw < 0.5 else Kind.KILL
            for node in nodes:
                self._one(node, deed, blow)
        else:
            self._one(nodes[0], blow.kind, blow)

    def _one(self, node: SimNode, kind: Kind, blow: Blow) -> None:
        """To a node to which nothing else is being done."""
        if not node.running or node.id in self._busy:
            return
        after, network = self.clock.after, self.network
        if kind is Kind.CRASH:
            models = sorted(node.engines.runs)
            if models:
                self.watch.deeds.hit(node.id)
                node.engines.crash(models[int(blow.draw * len(models))])
            return
        self.watch.deeds.hit(node.id)
        self._busy.add(node.id)
        match kind:
            case Kind.KILL:
                node.stop(clean=False, engines_die=True)
                after(blow.lasts_s, node.start)
            case Kind.LEAVE:
                node.stop(clean=True, engines_die=True)
                after(blow.lasts_s, node.start)
            case Kind.RESTART:
                node.stop(clean=True, engines_die=False, hold_s=20.0)
                after(blow.lasts_s, node.start)
            case Kind.HANG:
                network.freeze(node.id)
                after(blow.lasts_s, network.thaw, node.id)
            case Kind.STALL:
                network.stall(node.id)
                after(blow.lasts_s, network.resume, node.id)
            case Kind.DARK:
                network.stations[node.id].dark = True
                after(blow.lasts_s, self._light, node)
            case Kind.CUT:
                self._cut(node, blow)
        after(blow.lasts_s + 0.001, self._busy.discard, node.id)

    def _light(self, node: SimNode) -> None:
        self.network.stations[node.id].dark = False

    def _cut(self, node: SimNode, blow: Blow) -> None:
        home = self.network.stations[node.id].home
        if home and home != node.id:
            pairs = [pair(node.id, home)]
            self.network.cut(pairs)
            self.clock.after(blow.lasts_s, self._mend, pairs)

    def _mend(self, pairs: list[tuple[str, str]]) -> None:
        self.network.cut(pairs, heal=True)

    def _split(self, blow: Blow, nodes: list[SimNode]) -> None:
        if self.network.sides:
            return
        for node in nodes:
            self.watch.deeds.hit(node.id)
        self.network.set_sides(dict.fromkeys((node.id for node in nodes), 1))
        self.clock.after(blow.lasts_s, self._heal)

    def _heal(self) -> None:
        self.trace.note(self.clock.now_s, "heal")
        for node in list(self.network.sides):
            self.watch.deeds.hit(node)
        self.network.set_sides({})

    # --- figures

    def traffic(self) -> list[Traffic]:
        return [station.traffic.copy() for station in self.network.stations.values()]

    def views(self) -> list[MeshView]:
        return [node.member.view() for node in self.nodes if node.member is not None]
