"""What a node's rpc-servers should find in their tensor cache, and how far that is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SeedWish:
    """Layers of one model for one rpc-server.

    :ivar key: the rpc-server's instance name.
    :ivar fingerprint: of the model's content (`models.fingerprint`).
    :ivar files: the model's files on this node, empty where it does not hold it.
    :ivar first_layer: of the blocks that this node takes; ``layers`` is how many.
    :ivar sources: ``(node id, host:port of its peer door)`` of those that hold the model.
    """

    key: str
    model: str
    fingerprint: str
    files: tuple[str, ...]
    first_layer: int
    layers: int
    sources: tuple[tuple[str, str], ...] = ()


class SeedStage(StrEnum):
    """UNSEEDED: it was given up, and the weights will come over the connection."""

    WAITING = "waiting"
    SEEDING = "seeding"
    FETCHING = "fetching"
    CHECKING = "checking"
    READY = "ready"
    UNSEEDED = "unseeded"


@dataclass(frozen=True, slots=True)
class SeedState:
    """:ivar detail: what stands in the way, "" when nothing does."""

    stage: SeedStage
    done_bytes: int = 0
    total_bytes: int = 0
    detail: str = ""

    @property
    def progress(self) -> float:
        """0 to 1."""
        if self.stage in (SeedStage.READY, SeedStage.UNSEEDED):
            return 1.0
        return self.done_bytes / self.total_bytes if self.total_bytes else 0.0


class Seeder(Protocol):
    """The port to the tensor cache. Nothing here blocks; work goes on in the background."""

    def want(self, wishes: tuple[SeedWish, ...]) -> None:
        """These and no others; what is under way for one that stays goes on."""

    def states(self) -> Mapping[str, SeedState]:
        """By key, of every wish. READY only after size and time of every file were checked."""

    async def close(self) -> None: ...
