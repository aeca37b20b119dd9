"""The routing table of a node in a mesh: its own engines, and everybody else's behind their doors.

Pure: from records, which all nodes have, and from what this node alone measured (round trips and
which of a peer's addresses answers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from meshd.config.settings import Preset
from meshd.gateway.routes import (
    ModelState,
    Peer,
    Route,
    RoutingTable,
    Target,
    dialable,
    weights_of,
)
from meshd.mesh.record import Assignment, NodeRecord, Stage
from meshd.mesh.view import MemberView, Status
from meshd.mesh_share import Share
from meshd.planner.mesh_plan import Placement
from meshd.planner.plan import Code

PATIENCE_MS = {Preset.LAN: 1000, Preset.WAN: 4000}
"""How long a connection between two nodes may be silent while something is under way."""

_STATES = {
    Stage.READY: ModelState.READY,
    Stage.LOADING: ModelState.LOADING,
    Stage.CLAIMED: ModelState.LOADING,
    Stage.FAILED: ModelState.FAILED,
}
_BEST_FIRST = (ModelState.READY, ModelState.LOADING, ModelState.FAILED, ModelState.WAITING)


@dataclass(frozen=True, slots=True)
class Ways:
    """How this node reaches the others.

    :ivar mesh: the mesh's id. :ivar tls: folder with this node's certificate.
    :ivar addresses: by node, of its peer door, where another than its first is known to answer.
    :ivar rtt_ms: by node, median.
    :ivar revoked: nodes that are not let in any more.
    :ivar patience_ms: how long a connection may be silent before its node counts as lost.
    :ivar since_s: by node and model, when a load was first heard of; monotonic.
    :ivar followed: of a client, the table of the node that it follows.
    """

    mesh: str = ""
    tls: str = ""
    addresses: Mapping[str, str] = field(default_factory=dict)
    rtt_ms: Mapping[str, float] = field(default_factory=dict)
    revoked: tuple[str, ...] = ()
    patience_ms: int = 1000
    since_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    followed: RoutingTable | None = None


def with_mesh(table: RoutingTable, mine: Share | None, ways: Ways) -> RoutingTable:
    """Add to `table`, which knows this node's engines only, the rest of the mesh.

    A route keeps the targets that it has; targets elsewhere are added to it, and models that run
    only elsewhere, or nowhere, get routes of their own.
    """
    table = replace(
        table,
        mesh=ways.mesh,
        tls=ways.tls,
        revoked=ways.revoked,
        patience_ms=ways.patience_ms,
        client=ways.followed is not None,
    )
    if ways.followed is not None:
        return replace(table, routes=ways.followed.routes, peers=ways.followed.peers)
    if mine is None:
        return table
    view = mine.view
    others = [member for member in view.members if member.id != view.me]
    own = {one.model: one for one in mine.record.assignments}
    routes = {route.model: _own(route, own.get(route.model)) for route in table.routes}
    for placement in mine.plan.placements:
        local = routes.get(placement.model)
        routes[placement.model] = _route(placement, local, others, ways)
    # A node that answers comes before one whose distance nobody measured yet.
    known = sorted(others, key=lambda one: (ways.rtt_ms.get(one.id, float("inf")), one.id))
    here = [member for member in view.members if member.id == view.me]
    peers = tuple(
        Peer(member.id, address, member.record.name)
        for member in (*here, *known)
        if member.status is Status.ALIVE and (address := _address(member.record, ways))
    )
    return replace(table, routes=tuple(routes.values()), peers=peers)


def with_former(table: RoutingTable, before: RoutingTable, heard: frozenset[str]) -> RoutingTable:
    """Add the targets and peers that `before`, of an earlier life, has on nodes not heard of yet:
    they are there still, most likely, and a request that finds them gone goes elsewhere.

    :param heard: ids of the nodes that are known by now, this one among them.
    """
    if before.mesh != table.mesh:
        return table
    routes = {route.model: route for route in table.routes}
    for old in before.routes:
        far = tuple(one for one in old.targets if not one.socket and one.node not in heard)
        if not far:
            continue
        route = routes.get(old.model) or replace(old, targets=(), state=ModelState.WAITING)
        if any(one.ready for one in far):
            route = replace(route, state=ModelState.READY, detail="")
        routes[old.model] = replace(
            route, targets=(*route.targets, *far), context=max(route.context, old.context)
        )
    peers = tuple(peer for peer in before.peers if peer.node not in heard)
    return replace(table, routes=tuple(routes.values()), peers=(*table.peers, *peers))


def _own(route: Route, assignment: Assignment | None) -> Route:
    """An engine that is being given up finishes what it has and gets nothing new."""
    if assignment is None or assignment.stage is Stage.DRAINING:
        return replace(route, targets=(), state=ModelState.WAITING)
    targets = tuple(_with_content(one, assignment) for one in route.targets)
    return replace(route, targets=targets)


def _route(
    placement: Placement, local: Route | None, others: list[MemberView], ways: Ways
) -> Route:
    running = [
        (member, assignment)
        for member in others
        if (assignment := member.record.assignment(placement.model)) is not None
        and assignment.stage in _STATES
        and _address(member.record, ways)
    ]
    targets = tuple(_target(member, assignment, ways) for member, assignment in running)
    states = [_STATES[assignment.stage] for _, assignment in running]
    if local is not None:
        # An engine of our own that serves nothing is no reason to call the model unserved.
        states.append(local.state)
        targets = (*local.targets, *targets)
    state = min(states, key=_BEST_FIRST.index, default=ModelState.WAITING)
    base = local or _elsewhere(placement, others)
    detail = base.detail
    if state is ModelState.READY:
        detail = ""
    elif local is None or not detail:
        detail = _why_not(placement, running)
    if state is ModelState.WAITING and not targets and _drained(placement):
        state = ModelState.DRAINED
    contexts = [assignment.context for _, assignment in running]
    return replace(
        base,
        state=state,
        targets=targets,
        aliases=placement.aliases,
        context=max([base.context, *contexts], default=0),
        quality=placement.quality,
        detail=detail,
    )


def _elsewhere(placement: Placement, others: list[MemberView]) -> Route:
    """A model as the nodes that have its file describe it."""
    offers = [
        offer
        for member in others
        if (offer := member.record.offer(placement.model)) is not None
        and offer.fingerprint == placement.fingerprint
        and offer.capabilities
    ]
    return Route(
        model=placement.model,
        state=ModelState.WAITING,
        quality=placement.quality,
        capabilities=offers[0].capabilities if offers else (),
        created_s=max((offer.created_s for offer in offers), default=0),
    )


def _target(member: MemberView, assignment: Assignment, ways: Ways) -> Target:
    record = member.record
    load = next((one for one in record.load if one.model == assignment.model), None)
    loading = assignment.stage is Stage.LOADING
    since_s = ways.since_s.get((member.id, assignment.model), 0.0) if loading else 0.0
    target = Target(
        node=member.id,
        socket="",
        ready=assignment.stage is Stage.READY,
        slots=assignment.slots,
        address=_address(record, ways),
        name=record.name,
        suspect=member.status is Status.SUSPECT,
        busy=load.busy + load.waiting if load else 0,
        rtt_ms=ways.rtt_ms.get(member.id, 0.0),
        context=assignment.context,
        load_s=assignment.load_s if since_s else 0.0,
        since_s=since_s,
        split=bool(assignment.parts),
    )
    return _with_content(target, assignment)


def _with_content(target: Target, assignment: Assignment) -> Target:
    """What its engine computes with, as its node says; of this node's own the plan says more."""
    if target.whole:
        target = replace(
            target,
            shard=assignment.shard,
            experts=assignment.experts,
            experts_all=assignment.experts_all,
            measured=assignment.measured,
        )
    return replace(target, weights=weights_of(assignment.fingerprint, target.shard))


def _address(record: NodeRecord, ways: Ways) -> str:
    """Empty where it has none: the gateway refuses a table whole for one that it cannot dial."""
    best = ways.addresses.get(record.id, "")
    usable = [address for address in record.addresses if dialable(address)]
    return best if best in usable else next(iter(usable), "")


def _drained(placement: Placement) -> bool:
    return any(reason.code is Code.DRAINED_NODE for reason in placement.blockers)


def _why_not(placement: Placement, running: list[tuple[MemberView, Assignment]]) -> str:
    for member, assignment in running:
        if assignment.detail:
            return f"{member.record.name or member.id}: {assignment.detail}"
    blockers = "; ".join(reason.text for reason in placement.blockers)
    return ". ".join(filter(None, (blockers, placement.next_step)))
