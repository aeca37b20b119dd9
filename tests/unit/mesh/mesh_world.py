"""A small mesh in one process: members over a bus with delay, loss, reordering and partitions.

Time is virtual and every draw comes from one seed. Signatures are keyed hashes: cheap, and as wrong
as real ones when a byte changes.
"""

from __future__ import annotations

import heapq
import itertools
from base64 import b32encode
from collections.abc import Callable
from hashlib import blake2b
from random import Random

from meshd.mesh.bus import ANY_CORE, MESSAGE_MAX_BYTES, Ask, Put
from meshd.mesh.member import Member
from meshd.mesh.record import NodeRecord
from meshd.mesh.view import Status

MESH = "mesh2222mesh2222"
AUTHORITY = b"authority"
ADMITTED = b"admitted"


def key_of(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=32).digest()


def id_of(key: bytes) -> str:
    return b32encode(blake2b(key, digest_size=10).digest()).decode().lower()


def signature(key: bytes, data: bytes) -> bytes:
    return blake2b(data, key=key, digest_size=64).digest()


class CheapSigner:
    def __init__(self, name: str, admission: bytes = ADMITTED) -> None:
        self.public_key = key_of(name)
        self.node_id = id_of(self.public_key)
        self.admission = admission
        self.signed = 0

    def sign(self, data: bytes) -> bytes:
        self.signed += 1
        return signature(self.public_key, data)


class CheapVerifier:
    def __init__(self, mesh_id: str = MESH) -> None:
        self.mesh_id = mesh_id
        self.checks = 0

    def admitted(self, public_key: bytes, admission: bytes) -> bool:
        return admission == ADMITTED

    def verify(self, public_key: bytes, signed: bytes, data: bytes) -> bool:
        self.checks += 1
        return signature(public_key, data) == signed

    def node_id(self, public_key: bytes) -> str:
        return id_of(public_key)

    def verify_authority(self, signed: bytes, data: bytes) -> bool:
        return signature(AUTHORITY, data) == signed


class World:
    """:ivar nodes: running members by name. :ivar loss: share of puts and asks that vanish.

    :ivar loses_puts: every put vanishes, though questions are answered.

    :ivar sides: nodes of different sides do not hear each other. :ivar hung: they hear nothing.
    """

    def __init__(self, seed: int, *, loss: float = 0.0, duplicates: float = 0.0) -> None:
        self.rng = Random(seed)
        self.now_s = 0.0
        self.loss = loss
        self.duplicates = duplicates
        self.loses_puts = False
        self.nodes: dict[str, Member] = {}
        self.sides: dict[str, int] = {}
        self.hung: set[str] = set()
        self.tokens_s = 2.0
        self.puts = 0
        self.asks = 0
        self.bytes = 0
        self.names: dict[str, str] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._ticks: dict[str, float] = {}

    # What a test does.

    def start(
        self, name: str, *, core: bool = False, incarnation: int = 1, tokens: bool = True
    ) -> Member:
        signer = CheapSigner(name)
        member = Member(
            signer,
            CheapVerifier(),
            incarnation,
            lambda: self.now_s,
            Random(self.rng.random()),
            core=core,
        )
        self.nodes[name] = member
        self.names[member.id] = name
        member.publish(self.record(name, core=core))
        member.session_up()
        self.hung.discard(name)
        for other, them in self.nodes.items():
            if other != name and self.reach(name, other):
                if tokens:
                    self.at(0.02, lambda o=other: self._token(name, o, up=True))
                self.at(0.02, lambda o=other: self._token(o, name, up=True))
                assert them is not member
        self.run_effects(name)
        return member

    def record(self, name: str, *, core: bool = False, software: str = "1") -> NodeRecord:
        return NodeRecord(
            id=id_of(key_of(name)), name=name, core=core, software=software, session=name
        )

    def kill(self, name: str) -> None:
        """SIGKILL: nothing said, the token goes after the lease."""
        del self.nodes[name]
        node = id_of(key_of(name))
        for other in self.nodes:
            if self.reach(name, other):
                self.at(self.tokens_s, lambda o=other: self._lost(o, node))

    def hang(self, name: str) -> None:
        self.hung.add(name)
        node = id_of(key_of(name))
        for other in self.nodes:
            if other != name:
                self.at(self.tokens_s, lambda o=other: self._lost(o, node))

    def split(self, sides: dict[str, int]) -> None:
        before = {p: self.reach(*p) for p in itertools.permutations(self.nodes, 2)}
        self.sides = sides
        for (one, other), could in before.items():
            if could and not self.reach(one, other):
                node = self.nodes[other].id
                self.at(self.tokens_s, lambda o=one, n=node: self._lost(o, n))

    def heal(self) -> None:
        before = {p: self.reach(*p) for p in itertools.permutations(self.nodes, 2)}
        self.sides = {}
        for (one, other), could in before.items():
            if not could:
                self.at(
                    self.rng.uniform(0.1, 0.8), lambda a=one, b=other: self._token(a, b, up=True)
                )

    def flap(self, observer: str, name: str, for_s: float) -> None:
        """The token of a living node goes and comes, as when its core dies."""
        self._token(observer, name, up=False)
        self.at(for_s, lambda: self._token(observer, name, up=True))

    def reach(self, one: str, other: str) -> bool:
        return self.sides.get(one, 0) == self.sides.get(other, 0)

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._count), action))

    def run(self, for_s: float) -> None:
        end_s = self.now_s + for_s
        while self._events and self._events[0][0] <= end_s:
            self.now_s, _, action = heapq.heappop(self._events)
            action()
        self.now_s = end_s

    def run_until(
        self, condition: Callable[[], bool], within_s: float, step_s: float = 0.1
    ) -> float:
        """Seconds that it took. :raises AssertionError: longer than `within_s`."""
        began_s = self.now_s
        while not condition():
            assert self.now_s - began_s < within_s, f"not within {within_s} s"
            self.run(step_s)
        return self.now_s - began_s

    def sees(self, observer: str) -> dict[str, Status]:
        return {self.names[m.id]: m.status for m in self.nodes[observer].view().members}

    def exact(self, names: set[str] | None = None) -> bool:
        """Whether everyone of these sees just these, alive."""
        wanted = dict.fromkeys(names or set(self.nodes), Status.ALIVE)
        return all(self.sees(name) == wanted for name in wanted)

    def equal(self) -> bool:
        return len({m._intake.lattice.root for m in self.nodes.values()}) == 1

    # How the bus does it.

    def run_effects(self, name: str) -> None:
        member = self.nodes.get(name)
        if member is None:
            return
        for effect in member.drain():
            self.bytes += len(effect.data)
            assert len(effect.data) <= MESSAGE_MAX_BYTES
            if isinstance(effect, Put):
                self._put(name, effect)
            else:
                self._ask(name, member, effect)
        wake_s = self.now_s + member.next_tick_s()
        if wake_s < self._ticks.get(name, float("inf")) or self._ticks[name] <= self.now_s:
            self._ticks[name] = wake_s
            self.at(wake_s - self.now_s, lambda: self._tick(name, wake_s))

    def _tick(self, name: str, wake_s: float) -> None:
        if self._ticks.get(name) != wake_s:
            return
        self._ticks[name] = float("inf")
        member = self.nodes.get(name)
        if member is None or name in self.hung:
            return
        member.tick()
        self.run_effects(name)

    def _put(self, name: str, put: Put) -> None:
        self.puts += 1
        if name in self.hung or self.loses_puts:
            return
        for other in list(self.nodes):
            times = 1 + (self.rng.random() < self.duplicates)
            for _ in range(times):
                if other != name and self.rng.random() >= self.loss:
                    delay_s = self.rng.uniform(0.001, 0.05 if self.duplicates else 0.002)
                    self.at(delay_s, lambda o=other: self._hear(name, o, put.data))

    def _hear(self, name: str, other: str, data: bytes) -> None:
        if other in self.nodes and other not in self.hung and self.reach(name, other):
            self.nodes[other].heard(data)
            self.run_effects(other)

    def _ask(self, name: str, member: Member, ask: Ask) -> None:
        self.asks += 1
        target = self._target(name, ask.target)
        lost = target is None or self.rng.random() < self.loss or target in self.hung
        if lost or not self.reach(name, target) or name in self.hung:
            self.at(ask.timeout_s, lambda: self._answer(name, member, ask.number, None))
            return

        def arrive() -> None:
            there = self.nodes.get(target)
            reply = None if there is None else there.asked(ask.data)
            if reply is not None:
                self.bytes += len(reply)
                assert len(reply) <= MESSAGE_MAX_BYTES
            self.run_effects(target)
            delay_s = 0.001 if reply is not None else ask.timeout_s
            self.at(delay_s, lambda: self._answer(name, member, ask.number, reply))

        self.at(0.001, arrive)

    def _target(self, name: str, target: str) -> str | None:
        if target != ANY_CORE:
            found = self.names.get(target)
            return found if found in self.nodes else None
        cores = [
            other
            for other, member in self.nodes.items()
            if member.core and other != name and other not in self.hung and self.reach(name, other)
        ]
        return self.rng.choice(cores) if cores else None

    def _answer(self, name: str, member: Member, number: int, data: bytes | None) -> None:
        if self.nodes.get(name) is member and name not in self.hung:
            member.answered(number, data)
            self.run_effects(name)

    def _lost(self, observer: str, node: str) -> None:
        """After the lease: unless it is reachable again."""
        name = self.names[node]
        if name in self.nodes and name not in self.hung and self.reach(observer, name):
            return
        if observer in self.nodes and observer not in self.hung:
            self.nodes[observer].token(node, up=False)
            self.run_effects(observer)

    def _token(self, observer: str, name: str, *, up: bool) -> None:
        member = self.nodes.get(observer)
        if member is None or observer in self.hung or (up and not self.reach(observer, name)):
            return
        if up and name not in self.nodes:
            return
        member.token(id_of(key_of(name)), up=up)
        self.run_effects(observer)


def mesh_of(count: int, *, cores: int = 3, seed: int = 1, **faults: float) -> World:
    """A mesh that has come together."""
    world = World(seed, **faults)
    for number in range(count):
        world.start(f"n{number}", core=number < cores)
    world.run_until(world.exact, within_s=30)
    return world
