"""How many nodes serve a model from expert shards, and when a whole model takes over. Pure."""

from __future__ import annotations

from meshd.mesh.record import Assignment, Offer
from meshd.planner.eligible import Eligible, Known, Mesh
from meshd.planner.plan import Strategy
from meshd.planner.ranking import rank
from meshd.planner.wishes import Wanted

# What serves stays until another way is so much faster, or as fast and exact.
_OUTDONE = 1.25


def shards_for(asked: Wanted, may: Eligible, mesh: Mesh) -> int:
    """All nodes that have a shard of it, where the best way to serve it is one: they were cut for
    each other, so that every expert has a home. 0 where the model is served whole.
    """
    if asked.quality == "exact" or not may.nodes or not asked.least:
        return 0
    best = min(may.nodes, key=lambda node: rank(asked, mesh.known[node]))
    if not _is_shard(mesh.offer(asked.model, best)):
        return 0
    number = sum(_is_shard(mesh.offer(asked.model, node)) for node in may.nodes)
    return number if asked.most is None else min(number, asked.most)


def outdone(asked: Wanted, one: Known, running: Assignment, may: Eligible, mesh: Mesh) -> str:
    """Why a shard that runs here should give way to the whole model elsewhere; empty when not."""
    own = one.offers.get(asked.model)
    if not running.shard or own is None or not own.tokens_s:
        return ""
    for node in may.nodes:
        offer = mesh.offer(asked.model, node)
        if offer is None or offer.measured or node == one.member.id or not mesh.known[node].alive:
            continue
        if offer.tokens_s >= _OUTDONE * own.tokens_s:
            name = mesh.known[node].member.record.name or node
            return f"{name} serves it exactly, at {offer.tokens_s:g} tokens/s"
    return ""


def _is_shard(offer: Offer | None) -> bool:
    return offer is not None and offer.strategy == Strategy.EXPERT_SHARD
