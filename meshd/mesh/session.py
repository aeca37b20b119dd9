"""A node's part in its mesh: what the brain holds.

Runs a `Member` over whatever session the `Attachment` keeps open: hands it what comes, has done
what it wants done, keeps its timer. All of it in one event loop, none of it blocking.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import structlog

from meshd.config.settings import Core, MeshSettings
from meshd.errors import UserError
from meshd.mesh import cores
from meshd.mesh.attachment import Attachment
from meshd.mesh.bus import Ask
from meshd.mesh.candidates import Candidate
from meshd.mesh.credentials import Credentials
from meshd.mesh.effects import Effects
from meshd.mesh.envelope import revocation_text
from meshd.mesh.hearing import Hearing
from meshd.mesh.incarnation import IncarnationStore
from meshd.mesh.member import Member
from meshd.mesh.record import NodeRecord
from meshd.mesh.revocations import seal_revocation
from meshd.mesh.revocations_file import read_revocations, write_revocations
from meshd.mesh.view import MeshView
from meshd.mesh.whereabouts import Whereabouts

_log = structlog.get_logger(__name__)

_UNANSWERED_MOST = 3
_REOPEN_PAUSE_S = 10.0
_REOPEN_PAUSE_MOST_S = 120.0
_TICK_MOST_S = 5.0
# What arrives together is looked at together.
_LOOK_S = 0.02
_FAREWELL_S = 0.5


class MeshSession:
    """:param settings: ``mesh.*``; see `replace_settings` for those that may change.

    :param state_folder: what outlives a restart: incarnation, peers, revocations.
    :param tls_folder: with this node's certificate (`credentials.write_tls`).
    :param on_change: the view, or somebody's demand, may be another; called in the event loop.
    :param lan: find cores on the LAN, and be found there (``discovery.lan``).
    :param patient: join with the first `publish`. Else others may hear for a moment that this node
        runs nothing, and forget what it served before a restart.
    """

    def __init__(
        self,
        credentials: Credentials,
        settings: MeshSettings,
        state_folder: Path,
        tls_folder: Path,
        *,
        on_change: Callable[[], None],
        lan: bool = False,
        patient: bool = False,
    ) -> None:
        self._patient = patient
        self._credentials, self._settings = credentials, settings
        self._state, self._tls, self._lan = state_folder, tls_folder, lan
        self._on_change = on_change
        self._incarnations = IncarnationStore(state_folder)
        self._revocations_file = state_folder / "mesh/revocations"
        self._session = secrets.token_hex(8)
        self._record = NodeRecord(id=credentials.node_id, role="auto")
        self._tick_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._run: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._digest: int | None = None
        self._saved_incarnation = 0
        self._saved_revoked: frozenset[str] = frozenset()
        self._unanswered = 0
        self._reopen_at, self._reopen_pause_s = 0.0, _REOPEN_PAUSE_S
        self._started = self._closing = False
        self._attached = asyncio.Event()

    async def start(self) -> None:
        """Begin to join; returns at once, the mesh comes when it comes.

        :raises UserError: this node's state cannot be read or written.
        """
        held = self._credentials
        incarnation = await asyncio.to_thread(self._incarnations.next_incarnation)
        revocations = await asyncio.to_thread(read_revocations, self._revocations_file)
        self._saved_incarnation = incarnation
        self._member = Member(
            held.signer,
            held.verifier,
            incarnation,
            time.monotonic,
            Random(),  # noqa: S311 -- jitter
            str(self._settings.preset),
            revocations=revocations,
        )
        self._saved_revoked = self._member.revoked
        self._where = Whereabouts(
            held.mesh_id,
            held.node_id,
            self._settings,
            self._state / "mesh/peers.json",
            self._member.view,
            lambda: self._member.revoked,
        )
        self._attachment = Attachment(
            held.mesh_id,
            held.node_id,
            self._settings,
            self._tls,
            _Around(
                self._member,
                self._where,
                Hearing(self._member, self._moved),
                self._role_changed,
                self._on_change,
            ),
            seed=await self._where.seed(),
            lan=self._lan,
        )
        self._effects = Effects(lambda: self._attachment.bus, self._answered)
        self._effects.start()
        self._started = True
        if not self._patient:
            self.publish(self._record)

    @property
    def core(self) -> bool:
        """Whether this node relays for others now."""
        return self._attachment.core

    async def attached(self, timeout_s: float) -> bool:
        """Whether there has been a session with the mesh; waits for the first one."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._attached.wait(), timeout_s)
        return self._attached.is_set()

    @property
    def searched(self) -> bool:
        """Whether this node has looked for others while others could find it too."""
        return self._attachment.searched

    @property
    def revoked(self) -> frozenset[str]:
        """Ids of nodes that are out for good."""
        return self._member.revoked

    @property
    def problem(self) -> str:
        """Why the mesh is not reached, or what a person has to mend; one sentence, or ""."""
        return self._member.problem or self._attachment.problem

    @property
    def addresses(self) -> tuple[str, ...]:
        """``host:port`` that this node tells others to dial."""
        return self._where.told

    def view(self) -> MeshView:
        return self._member.view()

    def publish(self, record: NodeRecord) -> None:
        """Say this of ourselves; what the session knows better (addresses, core, session) it
        fills in.

        :raises BadRecordError: it has values that no reader would believe.
        """
        self._record = record
        if self._run is None and not self._closing:
            self._run = asyncio.create_task(self._attachment.run(), name="mesh attachment")
        told = record.addresses or self._where.told
        self._member.publish(
            replace(
                record,
                addresses=told,
                core=self._attachment.core,
                may_core=self._settings.core is not Core.NEVER and bool(told),
                session=self._session,
            )
        )
        self._moved()

    def renewed(self) -> None:
        """The certificate in the TLS folder is a new one: open the next session with it now."""
        self._attachment.reopen()

    def publish_demand(self, data: bytes) -> None:
        """:raises ValueError: it is too long."""
        self._member.publish_demand(data)
        self._moved()

    def demand_entries(self) -> list[tuple[bytes, float]]:
        """What every node published by `publish_demand`, with its age in seconds."""
        return self._member.demand_entries()

    def doubt(self, node: str) -> None:
        """A connection to this node failed just now: look whether it lives."""
        self._member.doubt(node)
        self._moved()

    def revoke(self, node: str) -> None:
        """Throw a node out of the mesh, for good.

        :raises UserError: this node does not hold the mesh's secret.
        """
        authority = self._credentials.authority
        if authority is None:
            raise UserError(
                "only a node that holds the mesh's secret can revoke another",
                hint="run it on a node that has the secret",
            )
        text = revocation_text(self._credentials.mesh_id, node)
        self._member.revoke(seal_revocation(node, authority.sign(text)))
        self._moved()

    async def close(self, back_in_s: float | None) -> None:
        """End the session. :param back_in_s: None to leave for good; else how soon we are back,
        so that others wait so long before they replace what runs here.
        """
        if not self._started or self._closing:
            return
        self._closing = True
        if self._run is not None:
            if back_in_s is None:
                self._member.leave()
            else:
                self._member.hold(back_in_s)
            self._moved()
            await self._effects.settle(_FAREWELL_S)
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        await asyncio.gather(*self._chores, return_exceptions=True)
        await self._where.remember(now=True)
        await self._attachment.close()
        await self._effects.stop()
        for timer in (self._tick_timer, self._look_timer):
            if timer is not None:
                timer.cancel()

    # What becomes of questions.

    def _answered(self, ask: Ask, data: bytes | None) -> None:
        before = self._member.unanswered
        self._member.answered(ask.number, data)
        after = self._member.unanswered
        self._moved()
        if after == 0 and before:
            self._unanswered, self._reopen_pause_s = 0, _REOPEN_PAUSE_S
        if after <= before or not self._attachment.expects_answers:
            return
        self._unanswered += 1
        now = time.monotonic()
        if self._unanswered >= _UNANSWERED_MOST and now >= self._reopen_at:
            self._unanswered = 0
            self._reopen_at = now + self._reopen_pause_s
            self._reopen_pause_s = min(2 * self._reopen_pause_s, _REOPEN_PAUSE_MOST_S)
            self._attachment.reopen()

    def _role_changed(self) -> None:
        self._attached.set()
        self._member.core = self._attachment.core
        self.publish(self._record)

    # Keeping up.

    def _moved(self) -> None:
        """After anything that reached the member."""
        self._effects.do(self._member.drain())
        loop = asyncio.get_running_loop()
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        wait_s = min(self._member.next_tick_s(), _TICK_MOST_S)
        self._tick_timer = loop.call_later(wait_s, self._tick)
        if self._look_timer is None and (self._member.changed or self._member.demand_changed):
            self._look_timer = loop.call_later(_LOOK_S, self._look)

    def _tick(self) -> None:
        self._member.tick()
        self._moved()

    def _look(self) -> None:
        self._look_timer = None
        view = self._member.view()
        moved = view.digest != self._digest
        self._digest = view.digest
        self._save()
        if moved:
            self._attachment.wake()
            self._chore(self._where.remember())
        if (moved or self._member.demand_changed) and not self._closing:
            self._on_change()

    def _save(self) -> None:
        incarnation = self._member.incarnation
        if incarnation != self._saved_incarnation:
            self._saved_incarnation = incarnation
            self._chore(asyncio.to_thread(self._incarnations.remember, incarnation))
        if self._member.revoked != self._saved_revoked:
            self._saved_revoked = self._member.revoked
            sealed = self._member.sealed_revocations
            self._chore(asyncio.to_thread(write_revocations, self._revocations_file, sealed))

    def _chore(self, work: Awaitable[None]) -> None:
        async def do() -> None:
            try:
                await work
            except (OSError, UserError) as error:
                _log.warning("the mesh's state cannot be written", reason=str(error))

        task = asyncio.create_task(do())
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


class _Around:
    """The `Surroundings` of the attachment."""

    def __init__(
        self,
        member: Member,
        where: Whereabouts,
        hearing: Hearing,
        role_changed: Callable[[], None],
        problem_changed: Callable[[], None],
    ) -> None:
        self._member, self._where = member, where
        self.hearing = hearing
        self.role_changed, self.problem_changed = role_changed, problem_changed
        self._ids: frozenset[str] = frozenset()
        self._since_s = time.monotonic()

    @property
    def revoked(self) -> frozenset[str]:
        return self._member.revoked

    @property
    def settled_s(self) -> float:
        ids = frozenset(member.id for member in self._member.view().members)
        if ids != self._ids:
            self._ids, self._since_s = ids, time.monotonic()
        return time.monotonic() - self._since_s

    def nodes(self) -> Sequence[cores.Node]:
        return [
            cores.Node(member.id, member.record.core, member.record.may_core)
            for member in self._member.view().members
        ]

    async def candidates(self, *, scout: bool) -> tuple[Candidate, ...]:
        return await self._where.candidates(scout=scout)
