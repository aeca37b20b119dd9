"""The session of the moment and the next one, which is opened before the old one is closed wherever
ports allow it: others see this node all the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from meshd.config.addresses import parse_address
from meshd.config.settings import Core, MeshSettings
from meshd.mesh import cores
from meshd.mesh.bus import BusError
from meshd.mesh.candidates import Candidate
from meshd.mesh.hearing import Ear, Hearing
from meshd.mesh.identity import is_id
from meshd.mesh.reach import Reach, Reached
from meshd.mesh.zenoh_bus import PortTakenError, ZenohBus, new_nonce, open_bus
from meshd.mesh.zenoh_config import SessionPlan, listen_endpoint, quic_endpoint, session_zid

_log = structlog.get_logger(__name__)

# Of a handshake; more while handshakes fail, since the machines may only be overloaded.
OPEN_S = 1.5
_OPEN_MOST_S = 6.0
_HANDOVER_S = 0.5
_PORT_S = 4.0
_ROUTES_S = {False: 0.1, True: 0.3}
_KEEP_TOKENS_S = 2.5
_CONNECT_MOST = 10


class Surroundings(Protocol):
    """What sessions ask of whoever holds the view."""

    @property
    def settled_s(self) -> float:
        """For how long the set of nodes has not changed."""

    @property
    def revoked(self) -> frozenset[str]: ...

    def nodes(self) -> Sequence[cores.Node]:
        """Those that are not dead, ourselves among them."""

    async def candidates(self, *, scout: bool) -> tuple[Candidate, ...]:
        """Whom to dial, best first. :param scout: ask the LAN as well."""

    @property
    def hearing(self) -> Hearing: ...

    @property
    def problem_changed(self) -> Callable[[], None]: ...

    @property
    def role_changed(self) -> Callable[[], None]: ...


@dataclass(slots=True)
class _Open:
    bus: ZenohBus
    ear: Ear


@dataclass(frozen=True, slots=True)
class Opened:
    """What a new session means. :ivar first: there was none before it.

    :ivar core: this node relays in it; ``changed`` from what it did. :ivar passing: not to stay.
    """

    core: bool
    first: bool
    changed: bool
    passing: bool


class Sessions:
    """:param opened: called when another session has become the one of the moment.

    :ivar open_s: how long a handshake may take now.
    """

    def __init__(
        self,
        mesh: str,
        node: str,
        settings: MeshSettings,
        tls: Path,
        around: Surroundings,
        *,
        lan: bool,
        opened: Callable[[Opened], None],
    ) -> None:
        self._mesh, self._node, self._settings, self._tls = mesh, node, settings, tls
        self._around, self._lan, self._told = around, lan, opened
        self._reach = Reach(mesh, node, tls)
        self._now: _Open | None = None
        self._buses: set[ZenohBus] = set()
        self._later: set[asyncio.Task[None]] = set()
        self.open_s = OPEN_S

    @property
    def bus(self) -> ZenohBus | None:
        return self._now.bus if self._now else None

    @property
    def core(self) -> bool:
        return self._now is not None and self._now.bus.core

    # Who answers

    def hurried(self, *, answered: bool) -> None:
        """Give handshakes more time after a try in vain, and the usual time after another."""
        self.open_s = OPEN_S if answered else min(1.5 * self.open_s, _OPEN_MOST_S)

    async def find(self, *, enough: int, cores_only: bool = False) -> tuple[Reached, ...]:
        """Who of all that we know answers, once `enough` do.

        :param cores_only: nobody else listens, so nobody else is asked.
        """
        candidates = await self._around.candidates(scout=self._lan and not cores_only)
        if cores_only:
            candidates = tuple(one for one in candidates if one.core)
        found = self.usable(await self._reach(candidates, enough=enough, timeout_s=self.open_s))
        if found or candidates:
            self.hurried(answered=bool(found))
        return found

    async def answering(
        self, candidates: Sequence[Candidate], *, enough: int | None = None, timeout_s: float = 0
    ) -> tuple[Reached, ...]:
        """Who of these answers, once `enough` do; all cores among them unless it says else."""
        if enough is None:
            enough = sum(one.core for one in candidates)
        return await self._reach(candidates, enough=enough, timeout_s=timeout_s or self.open_s)

    def usable(self, reached: Sequence[Reached]) -> tuple[Reached, ...]:
        """One each, and nobody who was revoked."""
        found: dict[str, Reached] = {}
        for one in reached:
            if one.node not in self._around.revoked:
                found.setdefault(one.node, one)
        return tuple(found.values())

    # Opening and closing. All raise BusError when it comes to nothing.

    async def be_client(self, reached: Sequence[Reached], *, passing: bool = False) -> None:
        """Of one of these. :param passing: only until something else is done."""
        # Each node its own order, so that not all are clients of one core.
        ordered = sorted(reached, key=lambda one: cores.rank(one.node + self._node))
        await self.open(core=False, connect=tuple(one.endpoint for one in ordered), passing=passing)

    async def be_core(self, reached: Sequence[Reached], candidates: Sequence[Candidate]) -> None:
        """Linked to these. :param candidates: everybody that we know."""
        if self._settings.core is Core.NEVER:
            raise BusError("no core of the mesh answers, and mesh.core: never forbids to be one")
        usable = self.usable(reached)
        # Cores that did not answer: they may come back, and then we find each other. Nobody by
        # two addresses: Zenoh would try the second one for ever.
        answered = [one.candidate for one in reached]
        nodes = self._around.nodes()
        # In a small mesh the others are about to be cores, if they are not yet.
        # One of two dials, that they have one link and not two.
        small = len(nodes) <= cores.WANTED
        soon = {node.id for node in nodes if small and node.eligible and node.id < self._node}
        silent = [
            one
            for one in candidates
            if (one.core or one.node in soon)
            and one not in answered
            and one.node not in ids_of(usable)
        ]
        places = [one.addresses[0] for one in silent]
        connect = [one.endpoint for one in usable]
        connect += [quic_endpoint(place.host, place.port) for place in places]
        await self.open(core=True, connect=tuple(connect[:_CONNECT_MOST]), reached=len(usable))

    async def open(
        self, *, core: bool, connect: tuple[str, ...], reached: int = 0, passing: bool = False
    ) -> None:
        """Make a session with these endpoints that of the moment.

        :param reached: how many of them answered just now, so that a link will be there soon.
        """
        bus = await self._opened(self._plan(core=core, connect=connect))
        if core and reached:
            await bus.linked(self.open_s)
        old, was_core = self._now, self.core
        ear = self._around.hearing.ear()
        bus.listen(ear)
        # What is sent before routes are known reaches nobody.
        await asyncio.sleep(_ROUTES_S[core])
        self._now = _Open(bus, ear)
        if not passing:
            self._around.role_changed()
        self._around.hearing.begin(ear)
        self._told(Opened(core, old is None, core != was_core, passing))
        _log.debug("mesh session", core=core, connect=connect, revoked=len(bus.plan.revoked))
        if old is not None:
            await asyncio.sleep(_HANDOVER_S)
            await self._end(old)

    def _plan(self, *, core: bool, connect: tuple[str, ...]) -> SessionPlan:
        listen = parse_address(self._settings.listen)
        places = sorted(listen.hosts) if core else ()
        return SessionPlan(
            zid=session_zid(self._mesh, self._node, new_nonce()),
            core=core,
            tls=self._tls,
            preset=self._settings.preset,
            listen=tuple(listen_endpoint(host, listen.port) for host in places),
            connect=connect,
            revoked=tuple(sorted(self._around.revoked)),
            answer_scouts=core and self._lan,
            open_timeout_ms=int(self.open_s * 1000),
        )

    async def _opened(self, plan: SessionPlan) -> ZenohBus:
        timeout_s = self.open_s * max(1, len(plan.connect)) + 1.0
        deadline = time.monotonic() + _PORT_S
        while True:
            try:
                bus = await open_bus(plan, self._mesh, self._node, timeout_s)
            except PortTakenError:
                # Our own old session keeps it for a tenth of a second after its end.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
            else:
                self._buses.add(bus)
                return bus

    async def drop(self) -> None:
        """Close the session of the moment; there is none then."""
        if self._now is not None:
            old, self._now = self._now, None
            await self._end(old)

    async def _end(self, old: _Open) -> None:
        self._around.hearing.close(old.ear)
        await old.bus.close()
        self._buses.discard(old.bus)

        async def forget() -> None:
            # What the old session saw holds until the new one has had time to see it.
            await asyncio.sleep(_KEEP_TOKENS_S)
            self._around.hearing.forget(old.ear)

        task = asyncio.create_task(forget())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def close(self) -> None:
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)
        now, self._now = self._now, None
        # One that was being opened or handed over when we were told to close is among them.
        await asyncio.gather(*(bus.close() for bus in self._buses))
        self._buses.clear()
        if now is not None:
            self._around.hearing.close(now.ear)


def ids_of(reached: Sequence[Reached]) -> set[str]:
    """The nodes that answered."""
    return {one.node for one in reached if is_id(one.node)}
