"""The brain's port to its expert shards: what is there, and what is to be made."""

from __future__ import annotations

from typing import Protocol

from meshd.mesh_routes import Ways
from meshd.pipeline import Proposal
from meshd.shard_wants import Shards


class ShardPort(Protocol):
    """Nothing here blocks but `close`."""

    def now(self) -> Shards:
        """What a pass should know."""

    def took(self, proposal: Proposal, ways: Ways | None) -> None:
        """A pass is done: have made what it wants."""

    async def close(self) -> None: ...


class NoShards:
    """Of a node that makes none."""

    def now(self) -> Shards:
        return Shards(problem="this node makes no shards")

    def took(self, proposal: Proposal, ways: Ways | None) -> None:
        pass

    async def close(self) -> None:
        pass
