"""Keeping this node attached to the mesh: through which session, as a core or as a client.

What to do is decided elsewhere (`cores`, `candidates`); here is when, and the sessions. A new
session is opened before the old one is closed wherever ports allow it, so that others see this
node all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
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
_OPEN_S = 1.5
_OPEN_MOST_S = 6.0
# Who is nobody's seed waits so long for the seeds before it begins a mesh without them: a large
# mesh that starts all at once must not begin as one of cores only, which no machine can carry.
_SEEDS_S = (20.0, 40.0)
_PAUSE_S, _PAUSE_MOST_S = 0.2, 5.0
_JOIN_MOST = 3
# Time that passed in longer steps passed because nothing ran here, and says nothing of others.
_LONGEST_STEP_S = 3.0
_LOST_TRIES = 2
# A person who looks should not have to wait for us to give up.
_SAY_S = 3.0
_STEP_S = 1.0
_SETTLED_S = 0.7
_SETTLED_LATEST_S = 3.0
_HANDOVER_S = 0.5
_PORT_S = 4.0
_EXPECT_AFTER_S = 5.0
_REHOME_S = 60.0
_ROUTES_S = {False: 0.1, True: 0.3}
_KEEP_TOKENS_S = 2.5
_ALONE_S = 5.0
_SEARCH_FIRST_S = 2.0
_SEARCH_MOST_S = 60.0
_REVOKE_WITHIN_S = 6.0
_CONNECT_MOST = 10


class Surroundings(Protocol):
    """What the attachment asks of whoever holds the view."""

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


class Attachment:
    """:ivar bus: the session to send by, None while there is none.

    :ivar searched: it has looked for others as a core, which others can find.
    :ivar problem: why the mesh is not reached, one sentence, or "".
    """

    def __init__(
        self,
        mesh: str,
        node: str,
        settings: MeshSettings,
        tls: Path,
        around: Surroundings,
        *,
        seed: bool,
        lan: bool,
    ) -> None:
        self._mesh, self._node, self._settings, self._tls = mesh, node, settings, tls
        self._around, self._seed, self._lan = around, seed, lan
        self._reach = Reach(mesh, node, tls)
        self._now: _Open | None = None
        self._buses: set[ZenohBus] = set()
        self._later: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._linked_at = self._opened_at = self._changed_at = time.monotonic()
        self._session_at = time.monotonic()
        self._search_at, self._search_s = 0.0, _SEARCH_FIRST_S
        self.searched = False
        self._open_s = _OPEN_S
        self._lost_tries = 0
        self._stepped_at = time.monotonic()
        self._reopen_wanted = False
        self._rehome_at = 0.0
        self._revoked_done: frozenset[str] = frozenset()
        self._revoke_at: float | None = None
        self._first_role = True
        self.problem = ""

    @property
    def bus(self) -> ZenohBus | None:
        return self._now.bus if self._now else None

    @property
    def core(self) -> bool:
        return self._now is not None and self._now.bus.core

    def wake(self) -> None:
        """Something changed that may change what to do."""
        self._wake.set()

    @property
    def expects_answers(self) -> bool:
        """Whether a core other than this node is connected, and has been for some time: if none
        answers then, the session is dead though its links live.
        """
        bus = self.bus
        if bus is None or time.monotonic() - self._session_at < _EXPECT_AFTER_S:
            return False
        links = {link.node for link in bus.links()}
        if not bus.core:
            return bool(links)
        return any(node.core and node.id in links for node in self._around.nodes())

    def reopen(self) -> None:
        """Make a new session soon."""
        self._reopen_wanted = True
        self._wake.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._begin()
        while True:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _STEP_S)
                # Many changes come at once.
                await asyncio.sleep(0.1)
            try:
                await self._step()
            except BusError as error:
                self._fail(str(error))

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

    # Beginning

    async def _begin(self) -> None:
        """Join through whoever answers; open as a core when nobody did for long enough."""
        started = time.monotonic()
        patience_s = self._open_s + random.uniform(0, 0.5)  # noqa: S311 -- jitter
        if not self._seed:
            patience_s += random.uniform(*_SEEDS_S)  # noqa: S311
        pause_s = _PAUSE_S
        while self._now is None:
            candidates = await self._around.candidates(scout=self._lan)
            try:
                if self._settings.core is Core.ALWAYS or not (candidates or self._lan):
                    await self._open_core((), candidates)
                elif self._seed:
                    await self._join_as_seed(candidates)
                else:
                    await self._join(candidates)
            except BusError as error:
                if not self.problem and time.monotonic() - started > _SAY_S:
                    self._fail(str(error))
            if self._now is None and time.monotonic() - started >= patience_s:
                with self._failing():
                    await self._open_core((), candidates)
            if self._now is None:
                # Who cannot be reached may be overloaded by all who try.
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
                pause_s = min(pause_s * 2, _PAUSE_MOST_S)
                # What the machine did not let us do is not what others did not do.
                late_s = await _lateness_s()
                patience_s += 10 * late_s

    async def _join_as_seed(self, candidates: Sequence[Candidate]) -> None:
        """Others wait for this node, so it tries all at the same time. :raises BusError: nobody
        answered.
        """
        found = await self._reach(candidates, enough=1, timeout_s=self._open_s)
        reached = self._usable(found)
        if not reached:
            raise BusError("no other node answers")
        await self._open_client(reached)

    async def _join(self, candidates: Sequence[Candidate]) -> None:
        """Be a client of the first that answers; one handshake a node is all that it costs.

        :raises BusError: nobody did.
        """
        if not candidates:
            raise BusError("no other node is known")
        ordered = sorted(candidates, key=lambda one: cores.rank(f"{one}{self._node}"))
        ordered.sort(key=lambda one: not one.core)
        places = [one.addresses[0] for one in ordered[:_JOIN_MOST]]
        # Of who is the only hope, every address.
        places += [place for one in ordered[:_JOIN_MOST] for place in one.addresses[1:2]]
        endpoints = tuple(quic_endpoint(place.host, place.port) for place in places)
        try:
            await self._open(core=False, connect=endpoints[: 2 * _JOIN_MOST])
        except BusError:
            self._open_s = min(1.5 * self._open_s, _OPEN_MOST_S)
            raise
        self._open_s = _OPEN_S

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BusError as error:
            self._fail(str(error))

    async def _find(self, *, enough: int, timeout_s: float) -> tuple[Reached, ...]:
        candidates = await self._around.candidates(scout=self._lan)
        found = self._usable(await self._reach(candidates, enough=enough, timeout_s=timeout_s))
        if found:
            self._open_s = _OPEN_S
        elif candidates:
            self._open_s = min(1.5 * self._open_s, _OPEN_MOST_S)
        return found

    def _usable(self, reached: Sequence[Reached]) -> tuple[Reached, ...]:
        """One each, and nobody who was revoked."""
        found: dict[str, Reached] = {}
        for one in reached:
            if one.node not in self._around.revoked:
                found.setdefault(one.node, one)
        return tuple(found.values())

    # From then on

    async def _step(self) -> None:
        now = time.monotonic()
        self._linked_at += max(0.0, now - self._stepped_at - _LONGEST_STEP_S)
        self._stepped_at = now
        bus = self.bus
        if bus is None or bus.closed:
            if bus is not None and bus.stranger:
                self._fail(f"{bus.stranger} is no node of this mesh")
            await self._drop()
            await self._begin()
            return
        links = {link.node for link in bus.links()}
        if links:
            self._linked_at, self._lost_tries = now, 0
        if links or bus.core:
            self._set_problem("")
        if await self._obey_revocations(bus, links, now):
            return
        if bus.core:
            await self._step_core(links, now)
        else:
            await self._step_client(links, now)

    async def _step_client(self, links: set[str], now: float) -> None:
        alone_s = now - self._linked_at
        if links and not self._reopen_wanted:
            if self._may_change(now) and self._should_be_core():
                await self._become_core()
            elif now >= self._rehome_at:
                await self._rehome()
            return
        if self._reopen_wanted or alone_s >= _STEP_S:
            reached = await self._find(enough=1, timeout_s=self._open_s)
            if reached:
                await self._open_client(reached)
                return
            self._reopen_wanted = False
            self._lost_tries += 1
        if not links:
            self._set_problem("no core of the mesh answers")
            wait_s = cores.orphan_wait_s(self._node, self._around.nodes())
            lost = alone_s >= wait_s and self._lost_tries >= _LOST_TRIES
            if lost and self._settings.core is not Core.NEVER:
                _log.info("no core left, becoming one", alone_s=round(alone_s, 1))
                await self._become_core()

    async def _rehome(self) -> None:
        """Know all cores, so that the loss of one costs a moment, and spread over them."""
        self._rehome_at = time.monotonic() + _REHOME_S * random.uniform(0.5, 1.0)  # noqa: S311
        bus = self.bus
        known = sum(node.core for node in self._around.nodes())
        if bus is None or len(bus.plan.connect) >= min(known, cores.WANTED):
            return
        reached = await self._find(enough=known, timeout_s=self._open_s)
        if len(reached) > len(bus.plan.connect):
            await self._open_client(reached)

    async def _step_core(self, links: set[str], now: float) -> None:
        nodes = self._around.nodes()
        if self._reopen_wanted:
            self._reopen_wanted = False
            if links:
                _log.info("nobody answers, opening a new session", links=len(links))
                await self._reopen_core()
                return
        if links and self._may_change(now) and not self._should_be_core():
            reached = await self._find(enough=1, timeout_s=self._open_s)
            if reached:
                await self._open_client(reached)
            return
        if links and not cores.first_core(self._node, nodes):
            return
        # Zenoh itself goes back to whom it knows; what follows is for whom it does not know.
        if now < self._search_at or (not links and now - self._linked_at < self._patience_s()):
            return
        # Alone, or the one that looks for parts of the mesh that were lost.
        known = {node.id for node in nodes} if links else set()
        unseen = tuple(
            one
            for one in await self._around.candidates(scout=self._lan and not links)
            if one.node not in known
        )
        found = await self._reach(unseen, enough=len(unseen), timeout_s=self._open_s)
        new = tuple(one for one in found if one.node not in known | links | self._around.revoked)
        if new and not (self.bus and {link.node for link in self.bus.links()} >= _ids(new)):
            _log.info("found a part of the mesh", nodes=sorted(_ids(new)))
            await self._reopen_core(new)
            self._search_s = _SEARCH_FIRST_S
        else:
            self._search_s = min(self._search_s * 2, _SEARCH_MOST_S)
        self.searched = True
        jitter = random.uniform(0.7, 1.0)  # noqa: S311
        self._search_at = time.monotonic() + self._search_s * jitter

    def _patience_s(self) -> float:
        """How long a core that is alone leaves the search to Zenoh."""
        # Who knows nobody by name found nobody while all were starting, since only cores answer.
        return random.uniform(0, 1) if self._lan and not self.searched else _ALONE_S  # noqa: S311

    def _may_change(self, now: float) -> bool:
        if not self._first_role:
            return now - self._changed_at >= cores.CHANGE_EVERY_S
        age_s = now - self._opened_at
        return age_s >= _SETTLED_LATEST_S or min(age_s, self._around.settled_s) >= _SETTLED_S

    def _should_be_core(self) -> bool:
        if self._settings.core is Core.AUTO:
            return cores.should_be_core(self._node, self._around.nodes())
        return self._settings.core is Core.ALWAYS

    async def _obey_revocations(self, bus: ZenohBus, links: set[str], now: float) -> bool:
        """Whether a session was made anew: one that refuses who was revoked."""
        revoked = self._around.revoked
        if revoked <= self._revoked_done:
            return False
        if not bus.core:
            self._revoked_done = revoked
            if links & revoked:
                reached = await self._find(enough=1, timeout_s=self._open_s)
                await self._drop()
                await (self._open_client(reached) if reached else self._begin())
                return True
            return False
        if self._revoke_at is None:
            wait_s = cores.reopen_wait_s(self._node, self._around.nodes(), _REVOKE_WITHIN_S)
            self._revoke_at = now + wait_s
        if now < self._revoke_at:
            return False
        self._revoke_at = None
        self._revoked_done = revoked
        await self._reopen_core()
        return True

    # Sessions

    async def _become_core(self) -> None:
        candidates = await self._around.candidates(scout=False)
        reached = await self._reach(
            candidates, enough=sum(one.core for one in candidates), timeout_s=_OPEN_S
        )
        await self._open_core(reached, candidates)

    async def _reopen_core(self, new: Sequence[Reached] = ()) -> None:
        """The port is ours until the old session is closed: meanwhile we are a client, if we can
        be one of somebody that survives.
        """
        candidates = await self._around.candidates(scout=False)
        reached = await self._reach(
            candidates, enough=sum(one.core for one in candidates), timeout_s=self._open_s
        )
        usable = self._usable((*new, *reached))
        if usable and self.bus is not None and self.bus.links():
            with contextlib.suppress(BusError):
                await self._open_client(usable, passing=True)
        if self.core:
            await self._drop()
        await self._open_core(usable, candidates)

    async def _open_client(self, reached: Sequence[Reached], *, passing: bool = False) -> None:
        # Each node its own order, so that not all are clients of one core.
        ordered = sorted(reached, key=lambda one: cores.rank(one.node + self._node))
        await self._open(
            core=False, connect=tuple(one.endpoint for one in ordered), passing=passing
        )

    async def _open_core(self, reached: Sequence[Reached], candidates: Sequence[Candidate]) -> None:
        if self._settings.core is Core.NEVER:
            raise BusError("no core of the mesh answers, and mesh.core: never forbids to be one")
        usable = self._usable(reached)
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
            and one.node not in _ids(usable)
        ]
        places = [one.addresses[0] for one in silent]
        connect = [one.endpoint for one in usable]
        connect += [quic_endpoint(place.host, place.port) for place in places]
        await self._open(core=True, connect=tuple(connect[:_CONNECT_MOST]), reached=len(usable))

    async def _open(
        self, *, core: bool, connect: tuple[str, ...], reached: int = 0, passing: bool = False
    ) -> None:
        listen = parse_address(self._settings.listen)
        plan = SessionPlan(
            zid=session_zid(self._mesh, self._node, new_nonce()),
            core=core,
            tls=self._tls,
            preset=self._settings.preset,
            listen=tuple(listen_endpoint(h, listen.port) for h in sorted(listen.hosts))
            if core
            else (),
            connect=connect,
            revoked=tuple(sorted(self._around.revoked)),
            answer_scouts=core and self._lan,
            open_timeout_ms=int(self._open_s * 1000),
        )
        bus = await self._opened(plan)
        if core and reached:
            await bus.linked(self._open_s)
        old, was_core = self._now, self.core
        ear = self._around.hearing.ear()
        bus.listen(ear)
        # What is sent before routes are known reaches nobody.
        await asyncio.sleep(_ROUTES_S[core])
        self._now = _Open(bus, ear)
        if not passing:
            self._around.role_changed()
        self._around.hearing.begin(ear)
        self._reopen_wanted = False
        now = time.monotonic()
        if old is None:
            self._opened_at = now
        if not core:
            # When cores have settled.
            self._rehome_at = now + random.uniform(5.0, 10.0)  # noqa: S311
        self._linked_at = self._session_at = now
        if core != was_core and not passing:
            self._first_role = self._first_role and old is None
            self._changed_at = now
        _log.debug("mesh session", core=core, connect=connect, revoked=len(plan.revoked))
        if old is not None:
            await asyncio.sleep(_HANDOVER_S)
            await self._end(old)

    async def _opened(self, plan: SessionPlan) -> ZenohBus:
        timeout_s = self._open_s * max(1, len(plan.connect)) + 1.0
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

    async def _drop(self) -> None:
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

    def _fail(self, why: str) -> None:
        if why != self.problem:
            _log.warning("the mesh is not reached", reason=why)
        self._set_problem(why)

    def _set_problem(self, problem: str) -> None:
        changed, self.problem = problem != self.problem, problem
        if changed:
            self._around.problem_changed()


async def _lateness_s() -> float:
    """How much later than asked for this process is let run."""
    asked = time.monotonic()
    await asyncio.sleep(0.05)
    return max(0.0, time.monotonic() - asked - 0.1)


def _ids(reached: Sequence[Reached]) -> set[str]:
    return {one.node for one in reached if is_id(one.node)}
