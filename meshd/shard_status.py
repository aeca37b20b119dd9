"""What a node says of the expert shards of its models. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from meshd.gateway.routes import ModelState, Route
from meshd.mesh.record import Assignment, NodeRecord, ShardRecord, ShardStage, Stage
from meshd.mesh.view import MeshView
from meshd.planner.plan import ShardUse
from meshd.quality import Budget, shortfalls
from meshd.shard_line import ShardStatus
from meshd.status import ModelStatus


def with_shards(
    model: ModelStatus,
    use: ShardUse | None,
    node: str,
    view: MeshView | None,
    *,
    experts_all: int = 0,
    budget: Budget | None = None,
) -> ModelStatus:
    """A model's status with every node's shard of it, this node's first.

    :param use: the shard that serves it here. :param node: this node's name.
    :param experts_all: of the model, 0 where this node does not know.
    :param budget: what a shard of it may lose, to say by how much one misses it.
    """
    own = use.key if use else ""
    found = []
    if use is not None:
        ready = model.state is ModelState.READY
        found.append(
            ShardStatus(
                model.name, node, True, ShardStage.READY, ready, use.experts, use.experts_all,
                use.mass, use.measured,
            )
        )  # fmt: skip
    for me, record in _records(view):
        found.extend(
            replace(one, experts_all=one.experts_all or experts_all, detail=_detail(one, budget))
            for one in shards_of(record, me=me, model=model.name, but=own if me else "")
        )
    if not found:
        return model
    found.sort(key=lambda one: (not one.me, one.node))
    return replace(model, shards=tuple(found))


def shards_of(
    record: NodeRecord, *, me: bool, model: str = "", but: str = ""
) -> Iterator[ShardStatus]:
    """A node's shards by its record: those that serve, and those that are under way.

    :param model: only this one's. :param but: leave out the shard with this key.
    """
    told: set[str] = {but} - {""}
    running = {one.model: one for one in record.assignments if one.shard}
    for shard in record.shards:
        if model in ("", shard.model) and not told & {shard.key}:
            yield _told(record, me, shard, running.get(shard.model))
    for assignment in running.values():
        same = record.shard(assignment.model)
        if (
            model in ("", assignment.model)
            and assignment.shard not in told
            # An old one serves until the new one is certified.
            and (same is None or same.key != assignment.shard)
        ):
            yield ShardStatus(
                assignment.model,
                record.name or record.id,
                me,
                ShardStage.READY,
                assignment.stage is Stage.READY,
                assignment.experts,
                assignment.experts_all,
                measured=assignment.measured,
            )


def shards_of_route(route: Route) -> tuple[ShardStatus, ...]:
    """Those that serve, as a client of the mesh knows them."""
    return tuple(
        ShardStatus(
            route.model, one.name or one.node, False, ShardStage.READY, one.ready, one.experts,
            one.experts_all, measured=one.measured,
        )
        for one in route.targets
        if not one.whole
    )  # fmt: skip


def _told(
    record: NodeRecord, me: bool, shard: ShardRecord, running: Assignment | None
) -> ShardStatus:
    serves = running is not None and running.shard == shard.key and running.stage is Stage.READY
    return ShardStatus(
        model=shard.model,
        node=record.name or record.id,
        me=me,
        stage=shard.stage,
        serves=serves,
        experts=shard.experts,
        mass=shard.mass,
        measured=shard.measured,
        progress=shard.progress,
        detail=shard.detail,
    )


def _records(view: MeshView | None) -> Iterator[tuple[bool, NodeRecord]]:
    if view is not None:
        yield from ((one.id == view.me, one.record) for one in view.members)


def _detail(one: ShardStatus, budget: Budget | None) -> str:
    if one.detail or one.stage != ShardStage.REFUSED or budget is None:
        return one.detail
    return "; ".join(shortfalls(budget, one.measured))
