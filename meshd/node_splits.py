"""The splits of a real node, put together behind `split_port.SplitPort`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from meshd.guard_watch import GuardWatch
from meshd.mesh.view import MeshView, Status
from meshd.mesh_routes import Ways
from meshd.paths import Paths
from meshd.pipeline import Proposal
from meshd.planner.lent import Lent
from meshd.planner.plan import Strategy
from meshd.planner.view import NodeView, Running
from meshd.seeding.wish import Seeder, SeedWish
from meshd.split_share import Splits, addresses_of
from meshd.split_watch import SplitWatch
from meshd.units.spec import EngineKind, EngineState

_SOURCES_MOST = 8


class NodeSplits:
    """:param wake: called when the brain should look again. :param clock: monotonic seconds."""

    def __init__(
        self,
        paths: Paths,
        wake: Callable[[], None],
        seeder: Seeder,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._seeder = seeder
        self._guards = GuardWatch(wake)
        self._watch = SplitWatch(clock)

    def now(
        self,
        running: tuple[Running, ...],
        lent: tuple[Lent, ...],
        view: MeshView,
        addresses: Mapping[str, str],
    ) -> Splits:
        guards = self._guards.said()
        hosted = [one.decision for one in running if one.decision.strategy is Strategy.PIPELINE]
        return Splits(
            lent=lent,
            guards=guards,
            seeds=self._seeder.states(),
            troubles=self._watch.look(hosted, view, guards),
            addresses=addresses_of(view, addresses),
        )

    def took(self, proposal: Proposal, ways: Ways | None) -> None:
        self._guards.watch(
            frozenset(
                self._paths.guard_socket(engine.name)
                for engine in proposal.engines
                if engine.kind is EngineKind.GUARD and engine.state is not EngineState.STOPPED
            )
        )
        share = proposal.share
        if share is None:
            self._seeder.want(())
            return
        addresses = dict(ways.addresses) if ways is not None else {}
        self._seeder.want(
            tuple(seed_wish(one, proposal.node, share.view, addresses) for one in proposal.lent)
        )

    async def close(self) -> None:
        await self._guards.close()
        await self._seeder.close()


def seed_wish(lent: Lent, node: NodeView, view: MeshView, addresses: Mapping[str, str]) -> SeedWish:
    """What a lent rpc-server should find in its cache, and where that may come from.

    :param addresses: ``host:port`` of other nodes that are known to answer.
    """
    return SeedWish(
        key=lent.name,
        model=lent.model,
        fingerprint=lent.fingerprint,
        files=_files(lent, node),
        first_layer=lent.first_layer,
        layers=lent.layers,
        sources=tuple(_sources(lent, view, addresses))[:_SOURCES_MOST],
    )


def _files(lent: Lent, node: NodeView) -> tuple[str, ...]:
    for candidate in node.candidates:
        if candidate.facts is not None and candidate.fingerprint == lent.fingerprint:
            return tuple(str(Path(file)) for file in candidate.facts.files)
    return ()


def _sources(lent: Lent, view: MeshView, addresses: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The host first, which holds the model for certain."""
    members = sorted(view.members, key=lambda one: one.id != lent.host)
    for member in members:
        record = member.record
        if member.id == view.me or member.status is not Status.ALIVE:
            continue
        holds = any(one.fingerprint == lent.fingerprint for one in record.held)
        address = addresses.get(member.id) or next(iter(record.addresses), "")
        if address and (holds or member.id == lent.host):
            yield member.id, address
