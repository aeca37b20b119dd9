"""How far a node's shard is, for the other nodes and for people. Pure."""

from __future__ import annotations

from dataclasses import replace

from meshd.experts.wish import Shard, WorkStage, WorkState
from meshd.mesh.record import ShardRecord, ShardStage
from meshd.quality import Budget, shortfalls

_DETAIL = 300

_STAGES = {
    WorkStage.RANKING: ShardStage.RANKING,
    WorkStage.FETCHING: ShardStage.MAKING,
    WorkStage.WRITING: ShardStage.MAKING,
    WorkStage.LOGITS: ShardStage.MAKING,
    WorkStage.CERTIFYING: ShardStage.MAKING,
    WorkStage.FAILED: ShardStage.REFUSED,
}


_DOING = {
    WorkStage.FETCHING: "what another node has found out is fetched",
    WorkStage.WRITING: "it is written",
    WorkStage.LOGITS: "the whole model answers the texts that it is to be measured by",
    WorkStage.CERTIFYING: "it is measured",
}


def under_way(said: ShardRecord, state: WorkState, waits_for: str) -> ShardRecord:
    """:param waits_for: what stands in the way, where the work itself does not say."""
    waits = waits_for if state.stage is WorkStage.WAITING else ""
    detail = state.detail or waits or _DOING.get(state.stage, "")
    return replace(
        said,
        stage=_STAGES.get(state.stage, ShardStage.WANTED),
        progress=round(min(1.0, max(0.0, state.progress)), 1),
        detail=detail[:_DETAIL],
    )


def words(said: ShardRecord) -> str:
    """Why the model is not served from it yet."""
    if said.stage is ShardStage.READY:
        return "its shard is ready"
    text = {
        ShardStage.WANTED: "its shard waits",
        ShardStage.RANKING: "its experts are counted",
        ShardStage.MAKING: "its shard is made",
        ShardStage.REFUSED: "its shard cannot serve",
        ShardStage.READY: "its shard is ready",
    }[said.stage]
    if said.progress:
        text += f", {said.progress:.0%}"
    return f"{text}: {said.detail}" if said.detail else text


def measured(said: ShardRecord, shard: Shard, budget: Budget) -> ShardRecord:
    """Of a shard that is whole: whether it may serve, and what it loses."""
    missed = shortfalls(budget, shard.measured)
    return replace(
        said,
        stage=ShardStage.REFUSED if missed else ShardStage.READY,
        mass=round(shard.mass, 3),
        detail="; ".join(missed)[:_DETAIL],
        measured=shard.measured,
    )
