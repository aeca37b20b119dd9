"""In what order nodes are asked to run a model. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

from meshd.mesh.record import Offer
from meshd.planner.eligible import Known
from meshd.planner.plan import Code, Strategy
from meshd.planner.wishes import Wanted

_ORDER: Mapping[str, int] = {
    Strategy.SOLO_GPU: 0,
    Strategy.PIPELINE: 1,
    Strategy.EXPERT_SHARD: 1,
    Strategy.SOLO_OFFLOAD: 2,
    Strategy.SOLO_CPU: 2,
}
# A split that is slower than what some node does alone, as its own offer says.
_ORDER_SLOWER = 3
_ORDER_UNKNOWN = 4
_SPEED_STEP = math.log(1.5)
# Splits and shards: fine enough that the best host wins, and from a token in a hundred seconds
# upwards.
_SPLIT_STEP = math.log(1.02)
_SPLIT_LEAST = 0.01

_STANDBY = 1 << 16
_STRATEGY = 1 << 13
_SPEED = 1 << 2
_SPEED_MOST = 2047
_PROCESSOR = 1 << 1

Order = tuple[int, int, int, str]
"""Rank, distance, chance, node: small is better, and no two are equal."""


def rank(asked: Wanted, one: Known) -> int:
    """How good a node is for a model, small is better: not a standby, then by strategy, by speed
    (in steps of 1.5 times, of splits and shards in steps of 2 %), and where its own configuration
    asks for it.

    Whole on GPUs comes before all others; a split, or a shard that loses no more than is allowed,
    before layers in one node's RAM, unless its node says that somebody is faster alone. Of those
    with layers in RAM the faster comes first, and of equals the one that has a GPU.

    Told from its own record alone, so that two nodes that compare themselves come to one result,
    whatever else they see.
    """
    known = one.ranks.get(asked.model)
    if known is None:
        standby = _STANDBY if one.standby else 0
        known = one.ranks[asked.model] = _rank(one.offers.get(asked.model)) + standby
    return known + (0 if one.member.id in asked.asked_by else 1)


def _rank(offer: Offer | None) -> int:
    result = 0
    if offer is None:
        return result + _ORDER_UNKNOWN * _STRATEGY + _SPEED_MOST * _SPEED
    strategy = _ORDER.get(offer.strategy, _ORDER_UNKNOWN)
    if offer.strategy in (Strategy.PIPELINE, Strategy.EXPERT_SHARD):
        speed = _split_speed(offer.tokens_s)
        if offer.code == Code.SOLO_FASTER:
            strategy = _ORDER_SLOWER
    else:
        speed = _speed(offer.tokens_s)
    if offer.strategy == Strategy.SOLO_CPU:
        result += _PROCESSOR
    return result + strategy * _STRATEGY + (_SPEED_MOST - speed) * _SPEED


def order(asked: Wanted, one: Known) -> Order:
    """`rank`, and what decides between equals: distance, then chance that all draw alike."""
    node = one.member.id
    return (rank(asked, one), one.near, chance(asked.model, node), node)


def _speed(tokens_s: float) -> int:
    """Steps of 1.5 times, so that a measurement that moved a little changes nobody's order."""
    if not math.isfinite(tokens_s) or tokens_s < 1.0:
        return 0
    return min(_SPEED_MOST, 1 + int(math.log(tokens_s) / _SPEED_STEP))


def _split_speed(tokens_s: float) -> int:
    if not math.isfinite(tokens_s) or tokens_s < _SPLIT_LEAST:
        return 0
    return min(_SPEED_MOST, 1 + int(math.log(tokens_s / _SPLIT_LEAST) / _SPLIT_STEP))


@lru_cache(maxsize=1 << 18)
def chance(model: str, node: str) -> int:
    """Rendezvous hashing (Thaler and Ravishankar, 1998): models spread, and a node that leaves
    moves only its own.
    """
    return int.from_bytes(blake2b(f"{model}\0{node}".encode(), digest_size=8).digest(), "big")
