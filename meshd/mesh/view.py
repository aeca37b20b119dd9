"""The mesh as one node sees it: who is there, and each one's record."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.mesh.record import NodeRecord


class Status(StrEnum):
    """ALIVE. SUSPECT: missed just now; no new requests, nothing is replaced yet. DEAD: confirmed,
    its models are placed elsewhere. LEFT: it said so.
    """

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class MemberView:
    """:ivar incarnation: counts the node's starts and refutations; the highest one is believed."""

    id: str
    incarnation: int
    status: Status
    record: NodeRecord


@dataclass(frozen=True, slots=True)
class MeshView:
    """:ivar members: alive and suspect ones that have a record, ourselves among them, by id.

    :ivar dead: records of those that are dead and not yet forgotten, by id: what their
        configurations asked of the mesh is asked still.
    :ivar digest: equal for equal members: what is computed from them may be remembered by it.
    """

    me: str
    members: tuple[MemberView, ...] = ()
    digest: int = 0
    dead: tuple[NodeRecord, ...] = ()

    def member(self, node: str) -> MemberView | None:
        return next((member for member in self.members if member.id == node), None)
