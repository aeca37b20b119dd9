"""Whose token each core knows and who is told of it: as Zenoh does, zombies and all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.station import Station

if TYPE_CHECKING:
    from tests.sim.network import Network

WITNESS_S = 1.0


class Tokens:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.clock = network.clock
        self.faults = network.faults
        self.trace = network.trace

    def introduce(self, station: Station, core: Station) -> None:
        """A new session hears of the tokens that its core knows."""
        thin = self.network.random.random() < self.faults.thin_start
        for node in list(core.known):
            if not thin or self.network.random.random() < 0.3:
                station.tell(node, True)

    def settle(self, core: Station) -> None:
        """After links changed: a core's table follows from the cores that it can reach."""
        reached = self.network.component(core.id)
        lost = [
            (node, source)
            for node, source in core.known.items()
            if source not in reached and source != "zombie"
        ]
        kept = {source for _, source in lost if self.network.random.random() < self.faults.zombie}
        gone = []
        for node, source in lost:
            if source in kept and self.network.random.random() < self.faults.zombie_part:
                core.known[node] = "zombie"
                self.trace.note(self.clock.now_s, "zombie", core.id, node)
                if not self.faults.zombies_shared:
                    self.clock.after(WITNESS_S, self._lay, core, node)
            else:
                del core.known[node]
                gone.append(node)
        came = []
        for source in reached:
            if source == core.id:
                continue
            home = self.network.stations[source]
            for node in (source, *home.clients):
                at_home = self.network.stations[node].home == source
                if core.known.get(node) == source or (node in core.known and not at_home):
                    continue
                if (
                    node not in core.known
                    and self.network.random.random() < self.faults.missed_token
                ):
                    self.trace.note(self.clock.now_s, "missed", core.id, node)
                    if self.faults.missed_token_s >= 0:
                        delay_s = self.network.random.uniform(0.0, self.faults.missed_token_s)
                        self.clock.after(delay_s, self._learn, core, node, source, True)
                    continue
                core.known[node] = source
                came.append(node)
        for node in gone:
            self._spread(core, node, False)
        for node in came:
            self._spread(core, node, True)

    def _lay(self, core: Station, node: str) -> None:
        """A zombie that no other core of this part sees through does not walk on."""
        if core.known.get(node) != "zombie":
            return
        if not core.awake:
            self.clock.after(WITNESS_S, self._lay, core, node)
            return
        others = (
            self.network.stations[other]
            for other in self.network.component(core.id)
            if other != core.id
        )
        if any(
            one.awake and not one.dark and not one.stalled and node not in one.known
            for one in others
        ):
            self.clock.after(WITNESS_S, self._lay, core, node)
            return
        del core.known[node]
        self._spread(core, node, False)

    def declare(self, core: Station, node: str) -> None:
        self._everywhere(core, node, True)

    def undeclare(self, core: Station, node: str) -> None:
        self._everywhere(core, node, False)

    def _everywhere(self, core: Station, node: str, up: bool) -> None:
        self._learn(core, node, core.id, up)
        for other, hops in self.network.component(core.id).items():
            if other != core.id:
                station = self.network.stations[other]
                delay_s = core.near_s + station.near_s * max(1, hops)
                self.clock.after(delay_s, self._learn, station, node, core.id, up)

    def _learn(self, core: Station, node: str, source: str, up: bool) -> None:
        if not core.awake:
            return
        home = self.network.stations[source]
        there = node == source or node in home.clients
        if up:
            if not home.awake or not there or core.known.get(node) == source:
                return
            core.known[node] = source
            self._spread(core, node, True)
        elif core.known.get(node) == source and not (there and home.awake):
            del core.known[node]
            self._spread(core, node, False)

    def _spread(self, core: Station, node: str, up: bool) -> None:
        self.trace.note(self.clock.now_s, "token", core.id, node, up)
        core.tell(node, up)
        if not core.dark:
            for client in list(core.clients.values()):
                client.tell(node, up)
