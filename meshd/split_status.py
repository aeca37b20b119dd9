"""What a node says of its part in splits. Pure."""

from __future__ import annotations

from dataclasses import replace

from meshd.gateway.routes import ModelState
from meshd.mesh_share import Share
from meshd.planner.plan import Decision
from meshd.status import LentStatus, ModelStatus


def lent_status(share: Share) -> tuple[LentStatus, ...]:
    """One line a lease that this node has given."""
    leases = {(one.host, one.model): one for one in share.record.leases}
    found = []
    for lent in share.lent:
        lease = leases.get((lent.host, lent.model))
        host = share.view.member(lent.host)
        found.append(
            LentStatus(
                model=lent.model,
                host=(host.record.name if host else "") or lent.host,
                layers=lent.layers,
                size_bytes=sum(part.size_bytes for part in lent.parts),
                stage=str(lease.stage) if lease else "",
                progress=lease.progress if lease else 0.0,
                detail=lease.detail if lease else "",
            )
        )
    return tuple(found)


def with_split(model: ModelStatus, decision: Decision, share: Share, waits: str) -> ModelStatus:
    """A pipeline's status with the members it lies over and what it waits for."""
    if not decision.links:
        return model
    names = {one.id: one.record.name or one.id for one in share.view.members}
    over = tuple(names.get(node, node) for node in decision.members)
    if waits and model.state is ModelState.LOADING:
        return replace(model, over=over, detail=waits)
    return replace(model, over=over)
