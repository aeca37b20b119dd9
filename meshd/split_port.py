"""The brain's port to its splits: guards, the weight cache, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from meshd.mesh.view import MeshView
from meshd.mesh_routes import Ways
from meshd.pipeline import Proposal
from meshd.planner.lent import Lent
from meshd.planner.view import Running
from meshd.split_share import Splits


class SplitPort(Protocol):
    """Nothing here blocks but `close`."""

    def now(
        self,
        running: tuple[Running, ...],
        lent: tuple[Lent, ...],
        view: MeshView,
        addresses: Mapping[str, str],
    ) -> Splits:
        """What a pass should know. :param lent: what this node lends.

        :param addresses: ``host:port`` of other nodes that are known to answer.
        """

    def took(self, proposal: Proposal, ways: Ways | None) -> None:
        """A pass is done: watch its guards, and fill the cache for what is lent."""

    async def close(self) -> None: ...


class NoSplits:
    """Of a node that takes no part in any."""

    def now(
        self,
        running: tuple[Running, ...],
        lent: tuple[Lent, ...],
        view: MeshView,
        addresses: Mapping[str, str],
    ) -> Splits:
        return Splits(lent)

    def took(self, proposal: Proposal, ways: Ways | None) -> None:
        pass

    async def close(self) -> None:
        pass
