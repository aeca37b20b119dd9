"""The star that Zenoh makes: cores fully linked, each client attached to one of them.

Sessions and links; who is told of whose token is in `tokens`, what is sent over them in `carriage`.
A dead link is noticed by each end at its own time after the lease; until then, what is sent is
lost.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from meshd.mesh.bus import Listener
from tests.sim.clock import Clock, Event
from tests.sim.faults import Faults
from tests.sim.station import Station
from tests.sim.tokens import Tokens
from tests.sim.trace import Trace

Pair = tuple[str, str]


def pair(a: str, b: str) -> Pair:
    return (a, b) if a < b else (b, a)


class Network:
    """All stations, and the links among them.

    :ivar sides: for stations that a partition put aside, which side; 0 for the rest.
    :ivar cuts: pairs that cannot reach each other though their sides are the same.
    """

    def __init__(self, clock: Clock, seed: int, faults: Faults, trace: Trace) -> None:
        self.clock = clock
        self.faults = faults
        self.trace = trace
        self.random = random.Random(f"network {seed}")
        self.stations: dict[str, Station] = {}
        self.cores: list[str] = []
        self.sides: dict[str, int] = {}
        self.cuts: set[Pair] = set()
        self.links: dict[Pair, float] = {}
        self.changing: dict[Pair, Event] = {}
        self.tokens = Tokens(self)

    def add(self, node: str, *, core: bool, near_s: float) -> Station:
        """:param near_s: its delay to and from the middle of the network."""
        station = Station(node, len(self.stations), core, near_s)
        self.stations[node] = station
        if core:
            self.cores.append(node)
        return station

    def open(self, node: str, listener: Listener) -> None:
        """A process starts; its session follows when it finds a core."""
        station = self.stations[node]
        assert not station.running
        station.listener = listener
        station.running = True
        station.frozen = station.stalled = station.dark = False
        station.seen, station.backlog = {}, []
        station.session += 1
        station.next_core = 0
        if station.core:
            station.home = node
            station.attached_s = self.clock.now_s
            station.known = {node: node}
            station.clients = {}
            station.turn(up=True)
            self._review(station)
        else:
            self._seek(station, self._draw(self.faults.reopen_s))

    def close(self, node: str, *, clean: bool) -> None:
        """The process is gone: with a word (seen at once) or by kill -9 or power loss."""
        station = self.stations[node]
        station.running = False
        station.listener = None
        for event in (station.pending, station.losing):
            if event is not None:
                event.cancel()
        station.pending = station.losing = None
        self._gone(station, quick=clean)

    def freeze(self, node: str) -> None:
        station = self.stations[node]
        station.frozen = True
        self._gone(station, quick=False)

    def thaw(self, node: str) -> None:
        """It finds its sessions dead if it was gone for longer than the lease."""
        station = self.stations[node]
        station.frozen = False
        if station.core:
            for client in list(station.clients.values()):
                if client.home != node or not client.awake:
                    del station.clients[client.id]
                    self.tokens.undeclare(station, client.id)
            for gone in [other for other in station.seen if other not in station.known]:
                station.tell(gone, False)
            for there in list(station.known):
                station.tell(there, True)
            self._review(station)
        elif not station.home:
            self._seek(station, self._draw(self.faults.reopen_s))
        elif station.id not in self.stations[station.home].clients:
            self._detach(station)

    def stall(self, node: str) -> None:
        self.stations[node].stalled = True

    def resume(self, node: str) -> None:
        station = self.stations[node]
        if station.stalled:
            station.stalled = False
            if station.running:
                station.catch_up()

    def reopen(self, node: str) -> None:
        """The driver gave its session up and opens another: a client takes its next core."""
        station = self.stations[node]
        if station.core or not station.awake or not station.home:
            return
        core = self.stations[station.home]
        if core.clients.pop(station.id, None) is not None and core.awake:
            self.tokens.undeclare(core, station.id)
        station.next_core += 1
        self._detach(station)

    def set_sides(self, sides: dict[str, int]) -> None:
        """Cut the network so that only stations of one side reach each other; {} heals it."""
        self.sides = sides
        self._review_all()

    def cut(self, pairs: Iterable[Pair], *, heal: bool = False) -> None:
        for one in pairs:
            (self.cuts.discard if heal else self.cuts.add)(one)
        self._review_all()

    def reach(self, a: Station, b: Station) -> bool:
        return (
            a.awake
            and b.awake
            and self.sides.get(a.id, 0) == self.sides.get(b.id, 0)
            and (not self.cuts or pair(a.id, b.id) not in self.cuts)
        )

    def component(self, core: str) -> dict[str, int]:
        """Cores to which `core` has links that work, and over how many of them."""
        reached = {core: 0}
        for one in (edge := [core]):
            for other in self.cores:
                if (
                    other not in reached
                    and pair(one, other) in self.links
                    and self.reach(self.stations[one], self.stations[other])
                ):
                    reached[other] = reached[one] + 1
                    edge.append(other)
        return reached

    def connected(self, a: str, b: str) -> bool:
        """Whether a put of one gets to the other now, faults aside."""
        one, other = self.stations[a], self.stations[b]
        if not (self.attached(one) and self.attached(other)):
            return False
        return other.home in self.component(one.home)

    def attached(self, station: Station) -> bool:
        """Whether its session works now (its ends may not yet know that it does not)."""
        if not station.awake or not station.home:
            return False
        if station.core:
            return True
        core = self.stations[station.home]
        return self.reach(station, core) and station.id in core.clients

    # --- sessions of clients

    def _seek(self, station: Station, delay_s: float) -> None:
        if station.pending is not None:
            station.pending.cancel()
        station.pending = self.clock.after(delay_s, self._try_core, station)

    def next_core(self, station: Station) -> Station:
        """The core that a client without a session tries next."""
        return self.stations[self.cores[(station.index + station.next_core) % len(self.cores)]]

    def _try_core(self, station: Station) -> None:
        station.pending = None
        if not station.awake or not self.cores:
            return
        core = self.next_core(station)
        if not self.reach(station, core):
            station.next_core += 1
            self._seek(station, self.faults.open_timeout_s)
            return
        station.home = core.id
        station.session += 1
        station.attached_s = self.clock.now_s
        core.clients[station.id] = station
        self.trace.note(self.clock.now_s, "attach", station.id, core.id)
        self.tokens.declare(core, station.id)
        station.turn(up=True)
        self.tokens.introduce(station, core)

    def _detach(self, station: Station) -> None:
        """The client notices that its session is dead."""
        station.losing = None
        if not station.awake or not station.home:
            return
        self.trace.note(self.clock.now_s, "detach", station.id, station.home)
        if self.random.random() < self.faults.forget:
            for node in list(station.seen):
                station.tell(node, False)
        station.home = ""
        station.session += 1
        station.seen.clear()
        station.turn(up=False)
        slow = self.random.random() < self.faults.long_reopen
        self._seek(station, self._draw(self.faults.long_reopen_s if slow else self.faults.reopen_s))

    def _drop_client(self, core: Station, station: Station, session: int) -> None:
        """The core notices that a client's session is dead."""
        if not core.awake or core.clients.get(station.id) is not station:
            return
        if station.session == session and self.reach(core, station):
            return
        if station.home != core.id or station.session == session:
            del core.clients[station.id]
        if station.home == core.id and station.session != session:
            return
        self.tokens.undeclare(core, station.id)

    # --- links

    def _draw(self, span: tuple[float, float]) -> float:
        return self.random.uniform(*span)

    def _gone(self, station: Station, *, quick: bool) -> None:
        if station.core:
            self._review(station, quick=quick)
        elif station.home:
            core = self.stations[station.home]
            delay_s = 0.01 if quick else self._draw(self.faults.lease_s)
            self.clock.after(delay_s, self._drop_client, core, station, station.session)
            if not station.running:
                station.home = ""

    def _review_all(self) -> None:
        for core in self.cores:
            self._review(self.stations[core])
        for station in self.stations.values():
            if not station.core and station.home:
                self._review_home(station, self.stations[station.home], quick=False)

    def _review(self, core: Station, *, quick: bool = False) -> None:
        """Have a core's links and its clients' sessions follow from who can reach whom."""
        for other in self.cores:
            if other == core.id:
                continue
            key = pair(core.id, other)
            want = self.reach(core, self.stations[other])
            if want is (key in self.links) and key in self.changing:
                self.changing.pop(key).cancel()
            elif want is not (key in self.links) and key not in self.changing:
                span = self.faults.link_s if want else self.faults.lease_s
                delay_s = 0.01 if quick and not want else self._draw(span)
                self.changing[key] = self.clock.after(delay_s, self._link, key, want)
        if not core.running:
            clients, core.clients, core.known = list(core.clients.values()), {}, {}
            core.home = ""
            for client in clients:
                self._review_home(client, core, quick=quick)
        else:
            for client in list(core.clients.values()):
                self._review_home(client, core, quick=quick)

    def _review_home(self, client: Station, core: Station, *, quick: bool) -> None:
        if self.reach(client, core) and client.id in core.clients:
            if client.losing is not None:
                client.losing.cancel()
                client.losing = None
            return
        lease_s = 0.02 if quick else self._draw(self.faults.lease_s)
        if client.awake and client.home == core.id and client.losing is None:
            client.losing = self.clock.after(lease_s, self._detach, client)
        if core.awake:
            self.clock.after(
                self._draw(self.faults.lease_s), self._drop_client, core, client, client.session
            )

    def _link(self, key: Pair, up: bool) -> None:
        self.changing.pop(key, None)
        one, other = (self.stations[end] for end in key)
        if up is not self.reach(one, other):
            return
        self.trace.note(self.clock.now_s, "link", *key, up)
        if up:
            self.links[key] = self.clock.now_s
        else:
            self.links.pop(key, None)
        for core in self.cores:
            if self.stations[core].awake:
                self.tokens.settle(self.stations[core])
