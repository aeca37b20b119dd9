"""What a node wants of its workshop of shards, and how far that is: the port between both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from meshd.experts.ranking import Ranking, Selection
from meshd.quality import Fidelity


@dataclass(frozen=True, slots=True)
class Text:
    """A kind of text. :ivar ranks: file to count experts on. :ivar measures: file to measure what
    a shard loses on; another one, since a shard does better on what it was made from.
    """

    domain: str
    ranks: str
    measures: str


@dataclass(frozen=True, slots=True)
class Holder:
    """Another node that has what is wanted. :ivar address: ``host:port`` of its peer door."""

    node: str
    address: str


@dataclass(frozen=True, slots=True)
class RankingWish:
    """:ivar model: for people. :ivar files: of the model, in order.

    :ivar computes: whether this node is to count, where nobody has it.
    :ivar wanted: hash of the ranking that the mesh settled on, "" where there is none by the texts
        that are asked for.
    """

    fingerprint: str
    model: str
    files: tuple[str, ...]
    texts: tuple[Text, ...]
    computes: bool
    wanted: str = ""
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardWish:
    """:ivar key: `experts.shard_key`. :ivar holders: who has the whole model's logits.

    :ivar computes: whether this node is to compute those, where nobody has them.
    """

    key: str
    fingerprint: str
    model: str
    files: tuple[str, ...]
    ranking: Ranking
    selection: Selection
    texts: tuple[Text, ...]
    holders: tuple[Holder, ...] = ()
    computes: bool = True


class WorkStage(StrEnum):
    """WAITING: for its turn, a quiet moment, or another node. LOGITS: of the whole model."""

    WAITING = "waiting"
    FETCHING = "fetching"
    RANKING = "ranking"
    WRITING = "writing"
    LOGITS = "logits"
    CERTIFYING = "certifying"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WorkState:
    """:ivar progress: of the stage, 0 to 1. :ivar detail: one sentence: what it waits for, or why
    it failed.
    """

    stage: WorkStage
    progress: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that lies here, whole and measured.

    :ivar path: of its file. :ivar experts: kept in each layer, of `experts_all`.
    :ivar ranking: hash of the ranking that it was chosen by.
    :ivar mass: of the choices on the calibration text, what it keeps: mean over the layers, and
        ``least_mass`` in the layer that keeps the least.
    """

    key: str
    fingerprint: str
    path: str
    size_bytes: int
    sha256: str
    ranking: str
    experts: int
    experts_all: int
    selection: Selection
    mass: float
    least_mass: float
    measured: tuple[Fidelity, ...]


class Workshop(Protocol):
    """Does the work of the wishes in the background, one thing after the other, when it is quiet.

    What nobody wishes any more is not finished. What lies on disk stays until room is needed.
    """

    def want(
        self,
        rankings: tuple[RankingWish, ...],
        shards: tuple[ShardWish, ...],
        in_use: frozenset[str] = frozenset(),
    ) -> None:
        """:param in_use: keys of shards that engines read, which are not to be removed."""
        ...

    @property
    def looked(self) -> bool:
        """Whether it has found what earlier lives left: not before something is wished."""
        ...

    def rankings(self) -> Mapping[str, Ranking]:
        """Those that are here, by fingerprint."""
        ...

    def shards(self) -> Mapping[str, Shard]:
        """Those that are here, by key, wanted or not."""
        ...

    def states(self) -> Mapping[str, WorkState]:
        """Of rankings by fingerprint, of shards by key; those that are wanted."""
        ...

    def logits(self) -> frozenset[str]:
        """Fingerprints of models whose logits are here for others to fetch."""
        ...

    async def close(self) -> None: ...
