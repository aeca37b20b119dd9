"""What is sent over the network: puts to everyone, asks to one, with loss, copies and delay.

A put is delivered in bulk: one event a core brings it to that core and to all of its clients.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from meshd.mesh.bus import ANY_CORE, MESSAGE_MAX_BYTES
from tests.sim.network import Network
from tests.sim.station import Station

Answer = Callable[[bytes | None], None]


class Carriage:
    def __init__(self, network: Network, seed: int) -> None:
        self.network = network
        self.clock = network.clock
        self.faults = network.faults
        self.trace = network.trace
        self.random = random.Random(f"carriage {seed}")
        self.puts = 0
        self.put_bytes = 0
        self.asks = 0
        self.largest_bytes = 0

    def put(self, node: str, data: bytes) -> bool:
        """False when the node has no session and knows it."""
        station = self.network.stations[node]
        if not station.home or not station.awake:
            return False
        self._size(data)
        self.puts += 1
        self.put_bytes += len(data)
        self.trace.data(self.clock.now_s, data)
        station.traffic.send(len(data))
        if not self.network.attached(station) or self._dark(station):
            return True
        home = self.network.stations[station.home]
        for core_id, hops in self.network.component(home.id).items():
            core = self.network.stations[core_id]
            delay_s = station.near_s + core.near_s * (1 + hops)
            if core is not home:
                home.traffic.relay(len(data), 1)
            self._after(delay_s, core, station.id, data)
            if self.random.random() < self.faults.duplicate:
                self._after(delay_s, core, station.id, data)
        return True

    def ask(self, node: str, target: str, data: bytes, timeout_s: float, answer: Answer) -> None:
        """:param answer: is told what came, or None after `timeout_s`, unless the asker died."""
        asker = self.network.stations[node]
        session = asker.session
        self._size(data)
        self.asks += 1
        self.trace.data(self.clock.now_s, data)
        asker.traffic.send(len(data))

        def reply(found: bytes | None) -> None:
            if found is not None and asker.session == session and asker.awake:
                asker.traffic.receive(len(found))
                finish(found)

        done = False

        def finish(found: bytes | None) -> None:
            nonlocal done
            if done or not asker.running:
                return
            done = True
            if asker.stalled:
                asker.keep(answer, found)
            elif asker.awake:
                answer(found)

        self.clock.after(timeout_s, finish, None)
        asked = self._whom(asker, target)
        if asked is None or self.random.random() < self.faults.silence:
            return
        delay_s = self._delay(asker.near_s + asked.near_s)
        self.clock.after(delay_s, self._question, asked, asked.session, data, reply)

    def _question(
        self, asked: Station, session: int, data: bytes, reply: Callable[[bytes | None], None]
    ) -> None:
        if not asked.awake or asked.listener is None or asked.session != session:
            return
        asked.traffic.receive(len(data))

        def respond(question: bytes) -> None:
            found = asked.listener.asked(question) if asked.listener is not None else None
            if found is None:
                return
            self._size(found)
            self.trace.data(self.clock.now_s, found)
            asked.traffic.send(len(found))
            if not asked.dark:
                self.clock.after(self._delay(asked.near_s), reply, found)

        if asked.stalled:
            asked.keep(respond, data)
        else:
            respond(data)

    def _whom(self, asker: Station, target: str) -> Station | None:
        network = self.network
        if not network.attached(asker) or self._dark(asker):
            return None
        if target == ANY_CORE:
            if not asker.core:
                return network.stations[asker.home]
            others = [core for core in network.component(asker.id) if core != asker.id]
            return network.stations[self.random.choice(others)] if others else None
        asked = network.stations.get(target)
        if asked is None or not network.connected(asker.id, target) or self._dark(asked):
            return None
        return asked

    def _dark(self, station: Station) -> bool:
        return self.network.stations[station.home].dark

    def _after(self, delay_s: float, core: Station, origin: str, data: bytes) -> None:
        self.clock.after(self._delay(delay_s), self._deliver, core, origin, data)

    def _delay(self, delay_s: float) -> float:
        if self.faults.jitter:
            delay_s *= 1 + self.random.expovariate(1 / self.faults.jitter)
        if self.faults.late and self.random.random() < self.faults.late:
            delay_s += self.random.uniform(0.0, self.faults.late_s)
        return delay_s

    def _deliver(self, core: Station, origin: str, data: bytes) -> None:
        network, now_s = self.network, self.clock.now_s
        if not core.awake:
            return
        fresh_s = now_s - self.faults.settle_s
        if core.id != origin and not self._missed(self.faults.loss, core.attached_s > fresh_s):
            core.hear(data)
        if core.dark:
            return
        receivers = [
            client
            for client in core.clients.values()
            if client.awake and client.id != origin and client.home == core.id
        ]
        skip = self._gap()
        copies = 0
        whole = not network.sides and not network.cuts
        for client in receivers:
            if not whole and not network.reach(client, core):
                continue
            copies += 1
            skip -= 1
            if skip < 0:
                skip = self._gap()
                continue
            if client.attached_s > fresh_s and self._missed(0.0, True):
                continue
            client.hear(data)
        core.traffic.relay(len(data), copies)

    def _gap(self) -> float:
        """How many receivers get a put until the next one that misses it (geometric)."""
        loss = self.faults.loss
        if loss <= 0:
            return math.inf
        return math.floor(math.log(1.0 - self.random.random()) / math.log(1.0 - loss))

    def _missed(self, loss: float, fresh: bool) -> bool:
        chance = max(loss, self.faults.loss_after_link if fresh else 0.0)
        return chance > 0 and self.random.random() < chance

    def _size(self, data: bytes) -> None:
        self.largest_bytes = max(self.largest_bytes, len(data))
        assert len(data) <= MESSAGE_MAX_BYTES, f"a message of {len(data)} bytes"
