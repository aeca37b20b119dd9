"""The node in its mesh: session, round trips and demand, put together behind `mesh_port.Mesh`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from meshd.config.settings import Config, DemandSettings, Preset, Role
from meshd.deeds import Deeds, EngineNow
from meshd.errors import UserError
from meshd.gateway.traffic import TrafficReport
from meshd.joined import Joined, join
from meshd.mesh.demand import DemandCounter, rates, total
from meshd.mesh.member_line import MemberLine
from meshd.mesh.record import DoctorSummary, Stage
from meshd.mesh.record_codec import BadRecordError
from meshd.mesh.session import MeshSession
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.mesh_port import alone
from meshd.mesh_routes import PATIENCE_MS, Ways
from meshd.mesh_share import Around
from meshd.mesh_status import member_lines
from meshd.node.link import NetworkWatch
from meshd.own_record import Moving
from meshd.paths import Paths
from meshd.pipeline import Proposal, Sought
from meshd.planner.wishes import wanted
from meshd.status import MeshStatus

_log = structlog.get_logger(__name__)

_CLAIM_WINDOW_S = {Preset.LAN: 0.4, Preset.WAN: 1.5}
# Of a meshd that is restarted after an upgrade, say: its engines go on.
RESTART_S = 45.0
# Of a node whose mesh.* changed.
_REJOIN_S = 10.0
_SETTLE_S = 4.0
# So long after joining, what is heard may not be all; longer where nobody was heard of who should:
# on a busy machine a restarted core needed 8 s to hear of the others.
_EARLY_S = 2.0
_ALONE_EARLY_S = 12.0
# On a LAN where all start at once nobody is found before somebody can be.
_SEARCH_S = 15.0


class InMesh:
    """The `mesh_port.Mesh` of a node that serves, or that is alone.

    :param wake: called when the brain should look again.
    :param restarting: whether this process ends while its engines go on: others then wait a while
        before they replace them.
    :param examine: what the doctor finds on this node; blocking.
    """

    def __init__(
        self,
        paths: Paths,
        wake: Callable[[], None],
        *,
        restarting: Callable[[], Awaitable[bool]],
        examine: Callable[[], DoctorSummary],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._wake = wake
        self._restarting = restarting
        self._examine = examine
        self._clock = clock
        self._deeds = Deeds(clock)
        self._demand_settings = DemandSettings()
        self._demand = DemandCounter(now=clock())
        self._joined: Joined | None = None
        self._spoke: Joined | None = None
        self._problem = ""
        self._present: tuple[tuple[str, Status], ...] = ()
        self._calm_since_s = clock()
        self._doctor: DoctorSummary | None = None
        self._network = NetworkWatch()
        self._drain_until_s: float | None = None
        self._loading_since_s: dict[tuple[str, str], float] = {}

    # -- joining --------------------------------------------------------------------------------

    async def follow(self, config: Config) -> None:
        if config.demand != self._demand_settings:
            self._demand_settings = config.demand
            self._demand = DemandCounter(config.demand.half_life_s, now=self._clock())
        serves = config.node.role is not Role.CLIENT
        joined = self._joined
        if joined is not None:
            if serves and joined.suits(config):
                await joined.keep_up(self._paths.tls, self._clock())
                await self._network.look(joined.reached())
                return
            self._joined = None
            await joined.part(back_in_s=_REJOIN_S if serves else None)
        problem = ""
        if serves:
            try:
                self._joined = await self._join(config)
            except UserError as error:
                problem = str(error)
            if self._joined is not None:
                self._deeds.forget_claims()
        if problem and problem != self._problem:
            _log.error("not in the mesh", error=problem)
        self._problem = problem

    async def _join(self, config: Config) -> Joined | None:
        return await join(
            config,
            self._paths,
            on_change=self._changed,
            wake=self._wake,
            examine=self._look,
            now_s=self._clock(),
        )

    async def close(self) -> None:
        joined, self._joined = self._joined, None
        if joined is not None:
            await joined.part(back_in_s=RESTART_S if await self._restarting() else None)

    # -- what a pass asks -----------------------------------------------------------------------

    def sought(self, config: Config) -> tuple[Sought, ...]:
        if self._joined is None:
            return ()
        own = {model.name for model in config.models}
        view = self._joined.session.view()
        fingerprints = _fingerprints(view)
        return tuple(
            Sought(one.model, one.source, fingerprints.get(one.model, ""))
            for one in wanted(view)
            if one.model not in own
        )

    def around(self, engines: Mapping[str, EngineNow]) -> Around | None:
        joined = self._joined
        if joined is None:
            return None
        session = joined.session
        view = session.view()
        own = view.member(joined.own.id)
        return Around(
            self=joined.own,
            view=view,
            demand=self._rates(session),
            calm_s=self._clock() - self._calm_since_s,
            own=self._deeds.own(engines),
            terms=dict(self._deeds.terms),
            drained=self._deeds.drained(self._drain_until_s),
            moving=Moving(
                core=session.core,
                load=self._deeds.load(),
                rtt=joined.prober.records(),
                doctor=self._doctor,
                draining=self._drain_until_s is not None,
                network_bytes_s=self._network.bytes_s,
            ),
            before=own.record if own else None,
            window_s=_CLAIM_WINDOW_S[joined.settings.preset],
            early=self._early(joined),
            cut=self._drain_until_s is not None and self._clock() >= self._drain_until_s,
        )

    def took(self, proposal: Proposal) -> None:
        joined, share = self._joined, proposal.share
        if joined is None or share is None:
            return
        self._deeds.took(share.record.assignments)
        try:
            joined.session.publish(share.record)
        except BadRecordError as error:
            _log.error("this node's record cannot be published", error=str(error))
        if self._spoke is not joined:
            # The session joins with the first thing that it has to say.
            self._spoke, joined.since_s = joined, self._clock()
        self._tell_demand(joined.session)
        peers = {
            member.id: member.record.addresses
            for member in share.view.members
            if member.id != joined.own.id
        }
        serving = frozenset(
            member.id
            for member in share.view.members
            if member.id in peers
            and any(one.stage is Stage.READY for one in member.record.assignments)
        )
        joined.prober.follow(peers, serving)

    async def settle(self) -> None:
        # Who restarts node after node goes on when systemctl returns: by then we must be back.
        if self._joined is not None:
            await self._joined.session.attached(_SETTLE_S)

    # -- what others ask ------------------------------------------------------------------------

    def ways(self) -> Ways | None:
        joined = self._joined
        if joined is None:
            return None
        members = joined.session.view().members
        self._note_loads(members)
        best = {member.id: joined.prober.best_address(member.id) for member in members}
        return Ways(
            mesh=joined.credentials.mesh_id,
            tls=str(self._paths.tls),
            addresses={node: address for node, address in best.items() if address},
            # As published: a table that is written anew for every round trip helps nobody.
            rtt_ms={one.peer: round(one.median_ms, 1) for one in joined.prober.records()},
            revoked=tuple(sorted(joined.session.revoked)),
            patience_ms=PATIENCE_MS[joined.settings.preset],
            since_s=dict(self._loading_since_s),
        )

    def status(self) -> MeshStatus | None:
        joined = self._joined
        if joined is None:
            return MeshStatus("", "", 0, problem=self._problem) if self._problem else None
        members = joined.session.view().members
        suspect = sum(member.status is Status.SUSPECT for member in members)
        return MeshStatus(
            id=joined.credentials.mesh_id,
            node=joined.own.id,
            nodes=len(members) - suspect,
            suspect=suspect,
            core=joined.session.core,
            problem=joined.session.problem,
        )

    def members(self) -> tuple[MemberLine, ...]:
        if self._joined is None:
            raise alone()
        ways = self.ways()
        assert ways is not None
        return member_lines(self._joined.session.view(), ways.addresses, ways.rtt_ms)

    def revoke(self, node: str) -> None:
        if self._joined is None:
            raise alone()
        self._joined.session.revoke(node)
        self._wake()

    def count(self, report: TrafficReport) -> None:
        load = self._deeds.load()
        missed = self._deeds.count(report, self._demand)
        if self._drain_until_s is not None:
            self._wake()
        if self._joined is not None:
            for node in report.unreachable:
                self._joined.session.doubt(node)
            # The next pass goes by what was told: what was asked first must not wait for another.
            told = self._tell_demand(self._joined.session)
            if told or missed or load != self._deeds.load():
                self._wake()

    def busy(self) -> Mapping[str, int]:
        return self._deeds.busy()

    def drain(self, until_s: float | None) -> None:
        self._drain_until_s = until_s

    # -- inside ---------------------------------------------------------------------------------

    def _changed(self) -> None:
        joined = self._joined
        if joined is not None:
            present = tuple((one.id, one.status) for one in joined.session.view().members)
            if present != self._present:
                self._present, self._calm_since_s = present, self._clock()
        self._wake()

    def _note_loads(self, members: tuple[MemberView, ...]) -> None:
        """Since when the others load what they load, by our own clock."""
        now_s = self._clock()
        self._loading_since_s = {
            (member.id, one.model): self._loading_since_s.get((member.id, one.model), now_s)
            for member in members
            for one in member.record.assignments
            if one.stage is Stage.LOADING
        }

    def _tell_demand(self, session: MeshSession) -> bool:
        due = self._demand.due(self._clock())
        if due is not None:
            session.publish_demand(due)
        return due is not None

    async def _look(self) -> None:
        self._doctor = await asyncio.to_thread(self._examine)

    def _early(self, joined: Joined) -> bool:
        there_s = self._clock() - joined.since_s
        expected = bool(joined.settings.peers) or joined.lan
        lonely = len(joined.session.view().members) <= 1 and expected
        if lonely and joined.lan and not joined.session.searched:
            return there_s < _SEARCH_S
        return there_s < (_ALONE_EARLY_S if lonely else _EARLY_S)

    def _rates(self, session: MeshSession) -> dict[str, float]:
        # Ours is among them as it was when we last told it, which is near enough.
        return rates(total(session.demand_entries(), self._demand_settings.half_life_s))


def _fingerprints(view: MeshView) -> dict[str, str]:
    """What the content of each model is: by whose configuration names it, else by who offers it."""
    records = (*(member.record for member in view.members), *view.dead)
    named: dict[str, str] = {}
    found: dict[str, str] = {}
    for record in records:
        names = {wish.model for wish in record.wishes}
        for offer in record.offers:
            if offer.fingerprint:
                told = named if offer.model in names else found
                told.setdefault(offer.model, offer.fingerprint)
    return {**found, **named}
