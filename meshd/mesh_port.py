"""The brain's port to the mesh, and what stands there on a node that is alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from meshd.config.settings import Config
from meshd.deeds import EngineNow
from meshd.errors import UserError
from meshd.gateway.traffic import TrafficReport
from meshd.mesh.member_line import MemberLine
from meshd.mesh_routes import Ways
from meshd.mesh_share import Around
from meshd.pipeline import Proposal, Sought
from meshd.status import MeshStatus


class Mesh(Protocol):
    """Everything returns at once but `follow` and `close`."""

    async def follow(self, config: Config) -> None:
        """Be in the mesh that the configuration says, or in none. Problems are in `status`."""

    def sought(self, config: Config) -> tuple[Sought, ...]:
        """Models that other nodes name and this node's configuration does not."""

    def around(self, engines: Mapping[str, EngineNow]) -> Around | None:
        """The mesh as it is now; None where the node is alone.

        :param engines: by model, those that run here.
        """

    def took(self, proposal: Proposal) -> None:
        """A pass is done: remember what this node does, and say what changed."""

    async def settle(self) -> None:
        """Wait until the others can hear us again, for a few seconds at most."""

    def ways(self) -> Ways | None: ...

    def status(self) -> MeshStatus | None: ...

    def members(self) -> tuple[MemberLine, ...]:
        """:raises UserError: the node is alone."""

    def revoke(self, node: str) -> None:
        """:raises UserError: the node is alone, or may not revoke."""

    def count(self, report: TrafficReport) -> None:
        """What this node's gateway had to do."""

    def busy(self) -> Mapping[str, int]:
        """Requests that this node's engines have, by model, as its gateway last said."""

    def drain(self, until_s: float | None) -> None:
        """From the next pass on this node gives up what it runs; None: it does not.

        :param until_s: monotonic; so long have its answers.
        """

    async def close(self) -> None: ...


class Alone:
    """No mesh at all."""

    async def follow(self, config: Config) -> None:
        pass

    def sought(self, config: Config) -> tuple[Sought, ...]:
        return ()

    def around(self, engines: Mapping[str, EngineNow]) -> Around | None:
        return None

    def took(self, proposal: Proposal) -> None:
        pass

    async def settle(self) -> None:
        pass

    def ways(self) -> Ways | None:
        return None

    def status(self) -> MeshStatus | None:
        return None

    def members(self) -> tuple[MemberLine, ...]:
        raise alone()

    def revoke(self, node: str) -> None:
        raise alone()

    def count(self, report: TrafficReport) -> None:
        pass

    def busy(self) -> Mapping[str, int]:
        return {}

    def drain(self, until_s: float | None) -> None:
        pass

    async def close(self) -> None:
        pass


def alone() -> UserError:
    """What to tell a person who asks a lonely node for its mesh."""
    return UserError(
        "this node is in no mesh", hint="meshd mesh secret --write makes the start of one"
    )
