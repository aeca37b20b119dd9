"""What a node knows of its expert shards, and what is to be made for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshd.experts.ranking import Ranking, Selection
from meshd.experts.wish import Shard, WorkState
from meshd.mesh.record import ShardRecord
from meshd.planner.plan import Decision

Calibration = tuple[tuple[str, str], ...]
"""As in `ModelSettings.calibration`."""

# What records tell of the digest of texts.
CALIBRATION_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Target:
    """The shard that this node settled on. :ivar age_s: since it did.

    :ivar others: what other nodes were to have, when that was last known.
    """

    key: str
    selection: Selection
    experts: int
    others: Mapping[str, Selection] = field(default_factory=dict)
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Shards:
    """What a node knows of its shards when a pass begins.

    :ivar rankings: by fingerprint. :ivar shards: that lie here, by key.
    :ivar states: of rankings by fingerprint, of shards by key.
    :ivar logits: fingerprints of models whose logits are here.
    :ivar targets: by model. :ivar passed: nodes that were waited for in vain, by model.
    :ivar calibrations: the digest of each that is known, as in `ShardRecord.calibration`.
    :ivar looked: what lies here is known, that of earlier lives as well.
    :ivar problem: why this node can make none, "" where it can.
    """

    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    shards: Mapping[str, Shard] = field(default_factory=dict)
    states: Mapping[str, WorkState] = field(default_factory=dict)
    logits: frozenset[str] = frozenset()
    targets: Mapping[str, Target] = field(default_factory=dict)
    passed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    calibrations: Mapping[Calibration, str] = field(default_factory=dict)
    looked: bool = True
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ShardWant:
    """What is to be made for one model.

    :ivar ranking: digest of the one that the mesh settled on, "" while there is none.
    :ivar works: this node counts, and computes logits, where nobody has done so.
    :ivar awaited: the node that does so, while there is something to do; "" for none.
    :ivar ranking_holders: nodes to ask for it, ``logits_holders`` for the whole model's logits.
    :ivar target: None while that is not known. :ivar serves: key of the shard that serves now.
    """

    model: str
    fingerprint: str
    files: tuple[str, ...]
    calibration: Calibration
    ranking: str
    works: bool
    ranking_holders: tuple[str, ...] = ()
    logits_holders: tuple[str, ...] = ()
    target: Target | None = None
    serves: str = ""
    awaited: str = ""


@dataclass(frozen=True, slots=True)
class ShardShare:
    """:ivar decisions: those that were given, some of them from shards now.

    :ivar records: this node's part, by model; ``wants`` what it should make.
    """

    decisions: tuple[Decision, ...]
    records: tuple[ShardRecord, ...] = ()
    wants: tuple[ShardWant, ...] = ()
