"""Which part a node has in its mesh: a member's, or a client's. A reload may change it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from meshd.as_client import AsClient
from meshd.config.settings import Config, Role
from meshd.deeds import EngineNow
from meshd.gateway.traffic import TrafficReport
from meshd.in_mesh import InMesh
from meshd.mesh.member_line import MemberLine
from meshd.mesh.record import DoctorSummary
from meshd.mesh_port import Mesh
from meshd.mesh_routes import Ways
from meshd.mesh_share import Around
from meshd.paths import Paths
from meshd.pipeline import Proposal, Sought
from meshd.status import MeshStatus


class MeshByRole:
    """The `mesh_port.Mesh` that a node has. Parameters as of `InMesh`."""

    def __init__(
        self,
        paths: Paths,
        wake: Callable[[], None],
        restarting: Callable[[], Awaitable[bool]],
        examine: Callable[[], DoctorSummary],
    ) -> None:
        self._member = InMesh(paths, wake, restarting=restarting, examine=examine)
        self._client = AsClient(paths, wake)
        self._now: Mesh = self._member

    async def follow(self, config: Config) -> None:
        # Who leaves one part lets go of it before taking up the other.
        parts: tuple[Mesh, Mesh] = (self._member, self._client)
        self._now, other = parts[::-1] if config.node.role is Role.CLIENT else parts
        await other.follow(config)
        await self._now.follow(config)

    def sought(self, config: Config) -> tuple[Sought, ...]:
        return self._now.sought(config)

    def around(self, engines: Mapping[str, EngineNow]) -> Around | None:
        return self._now.around(engines)

    def took(self, proposal: Proposal) -> None:
        self._now.took(proposal)

    async def settle(self) -> None:
        await self._now.settle()

    def ways(self) -> Ways | None:
        return self._now.ways()

    def status(self) -> MeshStatus | None:
        return self._now.status()

    def members(self) -> tuple[MemberLine, ...]:
        return self._now.members()

    def revoke(self, node: str) -> None:
        self._now.revoke(node)

    def count(self, report: TrafficReport) -> None:
        self._now.count(report)

    def busy(self) -> Mapping[str, int]:
        return self._now.busy()

    def drain(self, until_s: float | None) -> None:
        self._now.drain(until_s)

    async def close(self) -> None:
        await self._client.close()
        await self._member.close()
