"""What a node says of models that other nodes serve, and of the other nodes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from meshd.gateway.routes import ModelState, RoutingTable
from meshd.mesh.member_line import MemberLine
from meshd.mesh.record import Assignment, Stage
from meshd.mesh.view import MemberView, MeshView
from meshd.mesh_share import Share
from meshd.planner.mesh_plan import Placement
from meshd.report import PLANNED, Lost, Piece, Placed, PlacedOn, Possible
from meshd.shard_status import shards_of, shards_of_route
from meshd.status import STANDING, ModelStatus

_POSSIBLE_MOST = 16
_SERVES = (Stage.READY, Stage.LOADING, Stage.CLAIMED, Stage.FAILED)


def elsewhere_status(mine: Share, here: set[str]) -> tuple[ModelStatus, ...]:
    """The mesh's models of which this node runs no engine."""
    return tuple(
        _status(placement, mine.view)
        for placement in mine.plan.placements
        if placement.model not in here
    )


def followed_status(table: RoutingTable) -> tuple[ModelStatus, ...]:
    """The mesh's models as a client knows them."""
    return tuple(
        ModelStatus(
            name=route.model,
            state=route.state,
            strategy="elsewhere" if route.targets else "wait",
            unit="",
            pid=None,
            restarts=0,
            context=route.context,
            slots=sum(target.slots for target in route.targets if target.ready),
            memory_bytes=0,
            detail=route.detail,
            standing=True,
            nodes=tuple(target.name or target.node for target in route.targets),
            shards=shards_of_route(route),
        )
        for route in table.routes
    )


def with_others(model: ModelStatus, mine: Share) -> ModelStatus:
    """A model that runs here, with the other nodes that serve it too."""
    others = tuple(
        member.record.name or member.id
        for member in mine.view.members
        if member.id != mine.view.me
        and (one := member.record.assignment(model.name)) is not None
        and one.stage is Stage.READY
    )
    return replace(model, nodes=others)


def placed(mine: Share) -> tuple[Placed, ...]:
    """The mesh's plan, for `meshd plan`, with nodes by their names."""
    names = {one.id: one.record.name or one.id for one in mine.view.members}

    def on(node: str, stage: str, reason: str) -> PlacedOn:
        return PlacedOn(names.get(node, node), stage, reason)

    return tuple(
        Placed(
            model=one.model,
            wanted=one.wanted,
            demand=one.demand,
            on=tuple(
                on(replica.node, replica.stage or PLANNED, replica.reason.text)
                for replica in one.replicas
            ),
            leaving=tuple(on(leaving.node, leaving.code, leaving.text) for leaving in one.releases),
            excluded=tuple(on(other.node, other.code, other.text) for other in one.excluded),
            excluded_more=one.excluded_more,
            blockers=tuple(reason.text for reason in one.blockers),
            next_step=one.next_step,
            notes=one.notes,
            possible=_possible(one.model, mine.view, names),
            lost=_lost(one.model, mine, names),
            shards=tuple(
                shard
                for member in mine.view.members
                for shard in shards_of(member.record, me=member.id == mine.view.me, model=one.model)
            ),
        )
        for one in mine.plan.placements
    )


def _possible(model: str, view: MeshView, names: Mapping[str, str]) -> tuple[Possible, ...]:
    """Every node's offer, the fastest first."""
    found = [
        Possible(
            names.get(member.id, member.id),
            offer.strategy,
            offer.tokens_s,
            offer.context,
            offer.slots,
            offer.problem,
            tuple(
                Piece(names.get(part.node, part.node), part.device, part.layers, part.size_bytes)
                for part in offer.parts
            ),
            offer.measured,
        )
        for member in view.members
        if (offer := member.record.offer(model)) is not None
    ]
    found.sort(key=lambda one: (bool(one.problem), -one.tokens_s, one.node))
    return tuple(found[:_POSSIBLE_MOST])


def _lost(model: str, mine: Share, names: Mapping[str, str]) -> tuple[Lost, ...]:
    return tuple(
        Lost(
            tuple(names.get(node, node) for node in one.nodes),
            one.tokens_s,
            one.reason.code,
            one.reason.text,
            str(one.strategy or ""),
            one.measured,
        )
        for decision in mine.could
        if decision.model == model
        for one in decision.considered
    )


def member_lines(
    view: MeshView, addresses: Mapping[str, str], rtt_ms: Mapping[str, float]
) -> tuple[MemberLine, ...]:
    """Every member for `meshd mesh members` and the console."""
    return tuple(
        MemberLine(
            id=member.id,
            name=member.record.name,
            status="draining" if member.record.draining else str(member.status),
            role=member.record.role,
            core=member.record.core,
            me=member.id == view.me,
            addresses=_best_first(member, addresses.get(member.id, "")),
            rtt_ms=rtt_ms.get(member.id),
            models=tuple(
                one.model for one in member.record.assignments if one.stage is Stage.READY
            ),
            shards=tuple(shards_of(member.record, me=member.id == view.me)),
        )
        for member in view.members
    )


def _best_first(member: MemberView, best: str) -> tuple[str, ...]:
    return tuple(sorted(member.record.addresses, key=lambda address: address != best))


def _status(placement: Placement, view: MeshView) -> ModelStatus:
    found = [
        (member, assignment)
        for member in view.members
        if (assignment := member.record.assignment(placement.model)) is not None
        and assignment.stage in _SERVES
    ]
    found.sort(key=lambda one: _SERVES.index(one[1].stage))
    state, detail = _state(placement, found)
    best = found[0][1] if found else None
    idle = placement.wanted == 0 and not found
    return ModelStatus(
        name=placement.model,
        state=state,
        strategy="elsewhere" if found else "wait",
        unit="",
        pid=None,
        restarts=0,
        context=best.context if best else 0,
        slots=sum(one.slots for _, one in found if one.stage is Stage.READY),
        memory_bytes=0,
        detail=detail,
        reasons=tuple(reason.text for reason in placement.blockers),
        idle=idle,
        standing=idle
        or (bool(placement.blockers) and {r.code for r in placement.blockers} <= STANDING),
        nodes=tuple(member.record.name or member.id for member, _ in found),
    )


def _state(
    placement: Placement, found: list[tuple[MemberView, Assignment]]
) -> tuple[ModelState, str]:
    if not found:
        if placement.wanted == 0:
            return ModelState.WAITING, "loaded when somebody asks for it"
        blockers = "; ".join(reason.text for reason in placement.blockers)
        return ModelState.WAITING, ". ".join(filter(None, (blockers, placement.next_step)))
    member, best = found[0]
    where = member.record.name or member.id
    if best.stage is Stage.READY:
        return ModelState.READY, ""
    if best.stage is Stage.FAILED:
        return ModelState.FAILED, f"{where}: {best.detail}"
    return ModelState.LOADING, f"{where}: {best.stage}"
