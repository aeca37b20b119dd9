"""A node with the gateway only: it follows the routing table of a node nearby, and is no member."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from meshd.config.settings import Config, MeshSettings, Role
from meshd.deeds import EngineNow
from meshd.errors import UserError
from meshd.gateway.follow_routes import RouteFollower
from meshd.gateway.routes import RoutingTable
from meshd.gateway.table_file import read_table
from meshd.gateway.traffic import TrafficReport
from meshd.mesh.credentials import Credentials, credentials, write_tls
from meshd.mesh.member_line import MemberLine
from meshd.mesh_port import alone
from meshd.mesh_routes import PATIENCE_MS, Ways
from meshd.mesh_share import Around
from meshd.paths import Paths
from meshd.pipeline import Proposal, Sought
from meshd.status import MeshStatus

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Following:
    settings: MeshSettings
    credentials: Credentials
    follower: RouteFollower
    run: asyncio.Task[None]


class AsClient:
    """The `mesh_port.Mesh` of ``role: client``. :param wake: the table is another one."""

    def __init__(self, paths: Paths, wake: Callable[[], None]) -> None:
        self._paths = paths
        self._wake = wake
        self._following: _Following | None = None
        self._problem = ""

    async def follow(self, config: Config) -> None:
        following = self._following
        if following is not None:
            if following.settings == config.mesh and config.node.role is Role.CLIENT:
                return
            await self.close()
        if config.node.role is not Role.CLIENT:
            return
        try:
            await self._start(config.mesh)
            self._problem = ""
        except UserError as error:
            if str(error) != self._problem:
                _log.error("the mesh is not followed", error=str(error))
            self._problem = str(error)

    async def _start(self, settings: MeshSettings) -> None:
        held = await asyncio.to_thread(
            credentials, self._paths.state, Path(settings.secret), settings.name
        )
        if held is None:
            raise UserError(
                f"{settings.secret}: there is no secret, so this client belongs to no mesh",
                hint="copy the secret of the mesh there",
            )
        await asyncio.to_thread(write_tls, held, self._paths.tls, datetime.now(UTC))
        follower = RouteFollower(
            held.node_id,
            self._paths.tls,
            settings.peers,
            lambda _: self._wake(),
            last=await asyncio.to_thread(self._last),
            patience_ms=PATIENCE_MS[settings.preset],
        )
        run = asyncio.create_task(follower.run(), name="follow routes")
        self._following = _Following(settings, held, follower, run)

    def _last(self) -> RoutingTable | None:
        """The table from before a restart: its nodes are there still, most likely."""
        try:
            table = read_table(self._paths.routes).table
        except ValueError:
            return None
        return table if table.peers else None

    async def close(self) -> None:
        following, self._following = self._following, None
        if following is None:
            return
        following.run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following.run

    def sought(self, config: Config) -> tuple[Sought, ...]:
        return ()

    def around(self, engines: Mapping[str, EngineNow]) -> Around | None:
        return None

    def took(self, proposal: Proposal) -> None:
        pass

    async def settle(self) -> None:
        pass

    def ways(self) -> Ways | None:
        following = self._following
        if following is None:
            return None
        return Ways(
            mesh=following.credentials.mesh_id,
            tls=str(self._paths.tls),
            patience_ms=PATIENCE_MS[following.settings.preset],
            followed=following.follower.table or RoutingTable(),
        )

    def status(self) -> MeshStatus | None:
        following = self._following
        if following is None:
            return MeshStatus("", "", 0, problem=self._problem) if self._problem else None
        follower = following.follower
        nodes = len(follower.table.peers) if follower.table else 0
        return MeshStatus(
            id=following.credentials.mesh_id,
            node=following.credentials.node_id,
            nodes=nodes,
            problem="" if follower.connected else f"not connected: {follower.problem}",
        )

    def members(self) -> tuple[MemberLine, ...]:
        following = self._following
        if following is None:
            raise alone()
        table = following.follower.table or RoutingTable()
        models: dict[str, list[str]] = {}
        for route in table.routes:
            for target in route.targets:
                if target.ready:
                    models.setdefault(target.node, []).append(route.model)
        return tuple(
            MemberLine(
                id=peer.node,
                name=peer.name,
                status="alive",
                addresses=(peer.address,),
                models=tuple(models.get(peer.node, ())),
            )
            for peer in table.peers
        )

    def revoke(self, node: str) -> None:
        raise UserError("a client revokes nobody", hint="run it on a node that serves")

    def count(self, report: TrafficReport) -> None:
        """The nodes that answer count for their clients."""

    def busy(self) -> Mapping[str, int]:
        return {}

    def drain(self, until_s: float | None) -> None:
        """A client runs no engines."""
