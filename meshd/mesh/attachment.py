"""Keeping this node attached to the mesh: through which session, as a core or as a client.

What to do is decided elsewhere (`cores`, `candidates`), and `sessions` does it; here is when.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from meshd.config.settings import Core, MeshSettings
from meshd.mesh import cores
from meshd.mesh.beginning import Beginning
from meshd.mesh.bus import BusError
from meshd.mesh.reach import Reached
from meshd.mesh.sessions import OPEN_S, Opened, Sessions, Surroundings, ids_of
from meshd.mesh.zenoh_bus import ZenohBus

_log = structlog.get_logger(__name__)

# Time that passed in longer steps passed because nothing ran here, and says nothing of others.
_LONGEST_STEP_S = 3.0
_LOST_TRIES = 2
_STEP_S = 1.0
_SETTLED_S = 0.7
_SETTLED_LATEST_S = 3.0
_EXPECT_AFTER_S = 5.0
_REHOME_S = 60.0
_ALONE_S = 5.0
_SEARCH_FIRST_S = 2.0
_SEARCH_MOST_S = 60.0
_REVOKE_WITHIN_S = 6.0


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
        self._node, self._settings, self._around, self._lan = node, settings, around, lan
        self._sessions = Sessions(mesh, node, settings, tls, around, lan=lan, opened=self._opened)
        self._begin = Beginning(
            node, self._sessions, around, self._fail, role=settings.core, seed=seed, lan=lan
        )
        self._wake = asyncio.Event()
        self._linked_at = self._opened_at = self._changed_at = time.monotonic()
        self._session_at = time.monotonic()
        self._search_at, self._search_s = 0.0, _SEARCH_FIRST_S
        self.searched = False
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
        return self._sessions.bus

    @property
    def core(self) -> bool:
        return self._sessions.core

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
        await self._sessions.close()

    def _opened(self, opened: Opened) -> None:
        """Another session is the one of the moment."""
        now = time.monotonic()
        self._reopen_wanted = False
        if opened.first:
            self._opened_at = now
        if not opened.core:
            # When cores have settled.
            self._rehome_at = now + random.uniform(5.0, 10.0)  # noqa: S311
        self._linked_at = self._session_at = now
        if opened.changed and not opened.passing:
            self._first_role = self._first_role and opened.first
            self._changed_at = now

    # From then on

    async def _step(self) -> None:
        now = time.monotonic()
        self._linked_at += max(0.0, now - self._stepped_at - _LONGEST_STEP_S)
        self._stepped_at = now
        bus = self.bus
        if bus is None or bus.closed:
            if bus is not None and bus.stranger:
                self._fail(f"{bus.stranger} is no node of this mesh")
            await self._sessions.drop()
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
            reached = await self._sessions.find(enough=1)
            if reached:
                await self._sessions.be_client(reached)
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
        reached = await self._sessions.find(enough=known, cores_only=True)
        if len(reached) > len(bus.plan.connect):
            await self._sessions.be_client(reached)

    async def _step_core(self, links: set[str], now: float) -> None:
        nodes = self._around.nodes()
        if self._reopen_wanted:
            self._reopen_wanted = False
            if links:
                _log.info("nobody answers, opening a new session", links=len(links))
                await self._reopen_core()
                return
        if links and self._may_change(now) and not self._should_be_core():
            reached = await self._sessions.find(enough=1)
            if reached:
                await self._sessions.be_client(reached)
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
        found = await self._sessions.answering(unseen, enough=len(unseen))
        new = tuple(one for one in found if one.node not in known | links | self._around.revoked)
        if new and not (self.bus and {link.node for link in self.bus.links()} >= ids_of(new)):
            _log.info("found a part of the mesh", nodes=sorted(ids_of(new)))
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
                reached = await self._sessions.find(enough=1)
                await self._sessions.drop()
                await (self._sessions.be_client(reached) if reached else self._begin())
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
        reached = await self._sessions.answering(candidates, timeout_s=OPEN_S)
        await self._sessions.be_core(reached, candidates)

    async def _reopen_core(self, new: Sequence[Reached] = ()) -> None:
        """The port is ours until the old session is closed: meanwhile we are a client, if we can
        be one of somebody that survives.
        """
        candidates = await self._around.candidates(scout=False)
        reached = await self._sessions.answering(candidates)
        usable = self._sessions.usable((*new, *reached))
        if usable and self.bus is not None and self.bus.links():
            with contextlib.suppress(BusError):
                await self._sessions.be_client(usable, passing=True)
        if self.core:
            await self._sessions.drop()
        await self._sessions.be_core(usable, candidates)

    def _fail(self, why: str) -> None:
        if why != self.problem:
            _log.warning("the mesh is not reached", reason=why)
        self._set_problem(why)

    def _set_problem(self, problem: str) -> None:
        changed, self.problem = problem != self.problem, problem
        if changed:
            self._around.problem_changed()
