"""Small meshes to plan for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from meshd.mesh.record import (
    Assignment,
    DeviceRecord,
    MemoryUse,
    NodeRecord,
    Offer,
    Stage,
    Wish,
)
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.mesh_plan import MeshPlan
from meshd.planner.plan import Strategy

GIB = 1024**3


def wish(model: str, least: int = 1, most: int | None = None, **more: object) -> Wish:
    return replace(Wish(model, f"{model}.gguf", least=least, most=most), **more)


def offer(model: str, gib: float = 6, *, gpu: str = "GPU-1", speed: float = 50.0) -> Offer:
    uses = (MemoryUse(gpu, int(gib * GIB)), MemoryUse("ram", GIB // 2))
    return Offer(model, f"content-{model}", Strategy.SOLO_GPU, 8192, 4, uses, speed)


def runs(
    model: str, stage: Stage = Stage.READY, *, gib: float = 6, settled: bool = True
) -> Assignment:
    uses = (MemoryUse("GPU-1", int(gib * GIB)), MemoryUse("ram", GIB // 2))
    return Assignment(model, f"content-{model}", stage, 1, 8192, 4, uses, settled=settled)


def node(
    name: str,
    *offers: Offer,
    wishes: Iterable[Wish] = (),
    running: Iterable[Assignment] = (),
    gpus: tuple[float, ...] = (8,),
    ram_gib: float = 32,
    status: Status = Status.ALIVE,
    role: str = "auto",
    draining: bool = False,
) -> MemberView:
    devices = tuple(
        DeviceRecord(f"GPU-{i}", "GPU", int(g * GIB), int(g * GIB), int(g * GIB))
        for i, g in enumerate(gpus, 1)
    )
    ram = int(ram_gib * GIB)
    record = NodeRecord(
        f"id-{name}",
        name=name,
        role=role,
        devices=(*devices, DeviceRecord("ram", "RAM", ram, ram, ram)),
        wishes=tuple(wishes),
        offers=offers,
        assignments=tuple(running),
        draining=draining,
    )
    return MemberView(record.id, 1, status, record)


def mesh(*members: MemberView) -> MeshView:
    ordered = tuple(sorted(members, key=lambda member: member.id))
    return MeshView(ordered[0].id if ordered else "", ordered)


def where(plan: MeshPlan, model: str) -> list[str]:
    placement = plan.placement(model)
    assert placement is not None
    return [replica.node.removeprefix("id-") for replica in placement.replicas]


def applied(view: MeshView, plan: MeshPlan, *, settled: bool = True) -> MeshView:
    """The mesh when everybody has done at once what the plan says."""
    members = []
    for member in view.members:
        kept = {one.model: one for one in member.record.assignments}
        gone = {
            release.model
            for source in (*(p.releases for p in plan.placements), plan.orphans)
            for release in source
            if release.node == member.id
        }
        for placement in plan.placements:
            replica = placement.replica(member.id)
            if replica is not None:
                kept[placement.model] = Assignment(
                    placement.model,
                    kept[placement.model].fingerprint
                    if placement.model in kept
                    else placement.fingerprint,
                    Stage.READY,
                    1,
                    memory=replica.memory,
                    settled=settled,
                )
        # A claim that the plan does not name is withdrawn.
        stale = {
            model
            for model, one in kept.items()
            if one.stage is Stage.CLAIMED or one.stage is Stage.DRAINING
        }
        left = tuple(one for model, one in sorted(kept.items()) if model not in gone | stale)
        members.append(replace(member, record=replace(member.record, assignments=left)))
    return replace(view, members=tuple(members))
