"""How far the split is whose host this node is: what of it may run, and what it waits for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from meshd.config.split_ports import ways as way_ports
from meshd.guard.status import GuardStatus
from meshd.instance import instance_name
from meshd.mesh.record import Intent, Lease, LeaseStage
from meshd.mesh.view import MeshView
from meshd.planner.lent import Way
from meshd.planner.plan import Decision, Link, Strategy

_STAGES = {
    LeaseStage.SEEDING: "fills its weight cache",
    LeaseStage.STARTING: "starts its rpc-server",
    LeaseStage.REFUSED: "refuses",
}


@dataclass(frozen=True, slots=True)
class Hosting:
    """One split of this node's.

    :ivar ways: to its members; empty while one has no door yet, so that no guard can be started.
    :ivar stands: every member is ready and was reached: the engine may start.
    :ivar waits: what for, in words, "" when it stands.
    :ivar progress: of the member that is least far, 0 to 1.
    """

    model: str
    name: str
    term: int
    ways: tuple[Way, ...] = ()
    stands: bool = False
    waits: str = ""
    progress: float = 0.0


def hosting(decision: Decision, view: MeshView, guards: Mapping[str, GuardStatus]) -> Hosting:
    """:param guards: by instance, those of this node that answer."""
    name = instance_name(decision.model)
    known = {member.id: member.record for member in view.members}
    ways: list[Way] = []
    waits: list[str] = []
    progress = 1.0
    for link in decision.links:
        record = known.get(link.node)
        lease = lease_of(view, link.node, decision)
        who = (record.name or link.node) if record is not None else link.node
        if lease is None:
            waits.append(f"{who} has not answered yet")
            progress = 0.0
            continue
        if lease.stage is not LeaseStage.READY:
            percent = f" ({lease.progress:.0%})" if lease.stage is LeaseStage.SEEDING else ""
            detail = f": {lease.detail}" if lease.detail else ""
            waits.append(f"{who} {_STAGES[lease.stage]}{percent}{detail}")
            progress = min(progress, lease.progress)
        if lease.stage is not LeaseStage.REFUSED:
            ways.append(Way(link.node, _joined(link.address, lease.port), link.local_port))
    whole = len(ways) == len(decision.links)
    guard = guards.get(name)
    if not waits and guard is not None and guard.term == decision.term:
        reached = {peer.node: peer for peer in guard.peers}
        for link in decision.links:
            peer = reached.get(link.node)
            if peer is None or not peer.reached:
                why = peer.problem if peer is not None else ""
                who = known[link.node].name or link.node
                waits.append(f"{who} is not reached{': ' if why else ''}{why}")
    elif not waits:
        waits.append("its guard is starting")
    return Hosting(
        decision.model,
        name,
        decision.term,
        tuple(ways) if whole else (),
        stands=not waits,
        waits="; ".join(waits)[:200],
        progress=progress,
    )


def lease_of(view: MeshView, member: str, decision: Decision) -> Lease | None:
    """The member's answer to this decision's intent, where it has given one."""
    found = view.member(member)
    if found is None:
        return None
    return next(
        (
            lease
            for lease in found.record.leases
            if lease.host == view.me
            and lease.model == decision.model
            and lease.term == decision.term
        ),
        None,
    )


def intents(decisions: Iterable[Decision], fingerprints: Mapping[str, str]) -> tuple[Intent, ...]:
    """What the record says of the splits that this node hosts."""
    return tuple(
        Intent(one.model, one.term, fingerprints.get(one.model, ""), one.parts)
        for one in decisions
        if one.strategy is Strategy.PIPELINE
    )


def arranged(
    decision: Decision,
    others: Sequence[Decision],
    addresses: Mapping[str, str],
    *,
    term: int,
    first_port: int,
) -> Decision:
    """A new pipeline with its term and its links.

    :param others: pipelines that this node hosts already, whose ports are taken.
    :param addresses: of the other nodes, without ports.
    :param first_port: of the node's ports for splits.
    :raises ValueError: no port is free, or a member has no address.
    """
    taken = {link.local_port for one in others for link in one.links}
    free = (port for port in way_ports(first_port) if port not in taken)
    links = []
    for node in decision.members:
        port = next(free, None)
        address = addresses.get(node, "")
        if port is None or not address:
            raise ValueError("no port is free" if port is None else f"{node} has no address")
        links.append(Link(node, address, port))
    return replace(decision, term=term, links=tuple(links))


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
