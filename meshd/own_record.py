"""A node's own record: what it measured and does, as the others shall know it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshd import __version__
from meshd.config.settings import Config, Limit, ModelSettings
from meshd.engine.build import EngineBuild
from meshd.mesh.record import (
    Assignment,
    DeviceRecord,
    DoctorSummary,
    EngineRecord,
    HeldModel,
    MemoryUse,
    ModelLoad,
    NodeRecord,
    Offer,
    RttRecord,
    Wish,
)
from meshd.models.facts import GgufFacts
from meshd.planner.layout import RAM, Budgets
from meshd.planner.place import prompt_cache_bytes
from meshd.planner.plan import Code, Decision, Strategy
from meshd.planner.view import Candidate, NodeView

_PROBLEM = 400
_STEP_BYTES = 64 * 1024**2
# Free memory that moved by less is noise: an idle mesh has nothing to say.
_NOISE_SHARE = 0.05
_NOISE_BYTES = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class Self:
    """What does not change between two passes.

    :ivar addresses: of the peer door, as others reach it. :ivar session: made anew at every start.
    """

    id: str
    addresses: tuple[str, ...] = ()
    session: str = ""


@dataclass(frozen=True, slots=True)
class Moving:
    """What others measure or count for this node, beside the planner."""

    core: bool = False
    load: tuple[ModelLoad, ...] = ()
    rtt: tuple[RttRecord, ...] = ()
    doctor: DoctorSummary | None = None
    draining: bool = False
    network_bytes_s: int = 0


def own_record(
    self: Self,
    config: Config,
    node: NodeView,
    build: EngineBuild | None,
    held: tuple[HeldModel, ...],
    offers: tuple[Offer, ...],
    assignments: tuple[Assignment, ...],
    moving: Moving,
    budgets: Budgets,
    before: NodeRecord | None,
) -> NodeRecord:
    """The record as of now; memory figures stay those of `before` where they moved by noise."""
    limit = config.node.limit
    devices = _devices(node, budgets, limit)
    if before is not None:
        devices = _steady(before.devices, devices, limit)
    return NodeRecord(
        id=self.id,
        name=node.name,
        role=str(config.node.role),
        addresses=self.addresses,
        core=moving.core,
        session=self.session,
        software=f"meshd {__version__}",
        engine=_engine(build),
        devices=devices,
        held=held,
        wishes=tuple(map(wish, config.models)),
        offers=offers,
        assignments=assignments,
        load=moving.load,
        rtt=moving.rtt,
        doctor=moving.doctor,
        draining=moving.draining,
        network_bytes_s=moving.network_bytes_s,
    )


def wish(model: ModelSettings) -> Wish:
    """What the configuration says of a model, as the others need it."""
    most = model.replicas.max
    return Wish(
        model=model.name,
        source=model.source,
        context=0 if model.context == "auto" else model.context,
        slots=0 if model.slots == "auto" else model.slots,
        least=model.replicas.min,
        most=None if most == "auto" else most,
        quality=str(model.quality),
        aliases=model.aliases,
        nodes=() if model.nodes == "auto" else model.nodes,
        split=str(model.split),
    )


def offer_record(
    decision: Decision,
    candidate: Candidate | None,
    node: NodeView,
    *,
    limit: Limit | None = None,
) -> Offer:
    """What the local planner would do with a model, as the others need it."""
    reasons = decision.reasons if decision.served else decision.blockers
    facts = candidate.facts if candidate else None
    return Offer(
        model=decision.model,
        fingerprint=candidate.fingerprint if candidate else "",
        strategy=str(decision.strategy),
        context=decision.context,
        slots=decision.slots,
        memory=memory_uses(decision, node, limit),
        tokens_s=decision.tokens_s,
        capabilities=capabilities(facts) if facts else (),
        created_s=candidate.modified_s if candidate else 0,
        code=_code(decision),
        # What it lacks itself, then why others cannot help out.
        problem="" if decision.served else "; ".join(one.text for one in reasons[::-1])[:_PROBLEM],
        parts=decision.parts,
        measured=decision.shard.measured if decision.shard is not None else (),
    )


def _code(decision: Decision) -> str:
    """Why not; of a split also that some node is faster alone, which ranks it behind that one."""
    if not decision.served:
        return str(decision.blockers[-1].code) if decision.blockers else ""
    slower = any(reason.code is Code.SOLO_FASTER for reason in decision.reasons)
    return str(Code.SOLO_FASTER) if slower else ""


def capabilities(facts: GgufFacts) -> tuple[str, ...]:
    """What the header promises: an embedding model pools, a reranker pools into a rank, a chat
    model carries a template, and one that was trained for tools has a place for them in it.

    Pictures and sound need a projector beside the model, which meshd does not serve yet.
    """
    if facts.pooling:
        return ("rerank",) if facts.pooling == "rank" else ("embeddings",)
    if not facts.chat_template:
        return ("completion",)
    return ("chat", "completion", "tools") if facts.tools else ("chat", "completion")


def memory_uses(
    decision: Decision, node: NodeView, limit: Limit | None = None
) -> tuple[MemoryUse, ...]:
    """Planned bytes by device, as records carry them: what a decision takes from others.

    A unified GPU's are the RAM's, and so are the prompts that an engine keeps (a split's keeps
    none).

    :param limit: of the node, which bounds those prompts.
    """
    if not decision.served:
        return ()
    unified = {gpu.id for gpu in node.gpus if gpu.unified}
    taken = {RAM: prompt_cache_bytes(node.hardware.ram.total_bytes, limit)}
    if decision.strategy is Strategy.PIPELINE:
        taken = {}
    for use in decision.memory:
        device = RAM if use.device in unified else use.device
        taken[device] = taken.get(device, 0) + use.total_bytes
    return tuple(MemoryUse(device, size) for device, size in sorted(taken.items()) if size)


def _engine(build: EngineBuild | None) -> EngineRecord | None:
    if build is None:
        return None
    return EngineRecord(
        version=build.version,
        package=build.package,
        ggml=build.ggml,
        build=build.build,
        rpc_protocol=build.rpc_protocol,
        backends=build.backends,
    )


def _devices(node: NodeView, budgets: Budgets, limit: Limit) -> tuple[DeviceRecord, ...]:
    gpus = tuple(
        DeviceRecord(
            id=gpu.id,
            name=gpu.name,
            total_bytes=gpu.total_bytes,
            free_bytes=_step(gpu.free_bytes),
            # A unified device has no memory of its own: what it may use is the RAM's.
            plannable_bytes=0
            if gpu.unified
            else _plannable(budgets.free(gpu.id), limit.vram_bytes),
            unified=gpu.unified,
        )
        for gpu in node.gpus
    )
    ram = node.hardware.ram
    memory = DeviceRecord(
        id=RAM,
        name=node.hardware.cpu.name,
        total_bytes=ram.total_bytes,
        free_bytes=_step(ram.available_bytes),
        plannable_bytes=_plannable(budgets.free(RAM), limit.ram_bytes),
    )
    return tuple(_with_speed(one, node) for one in (*gpus, memory))


def _with_speed(device: DeviceRecord, node: NodeView) -> DeviceRecord:
    speed = node.speed(device.id)
    if speed is None:
        return device
    return replace(
        device,
        bandwidth_bytes_s=speed.bandwidth_bytes_s,
        flops_s=speed.flops_s,
        lent_bandwidth_bytes_s=speed.lent_bandwidth_bytes_s,
        lent_flops_s=speed.lent_flops_s,
    )


def _plannable(size_bytes: int, limit_bytes: int | None) -> int:
    # A limit is a figure that somebody chose: it does not move, and may be small.
    return size_bytes if size_bytes == limit_bytes else _step(size_bytes)


def _step(size_bytes: int) -> int:
    return max(0, size_bytes) // _STEP_BYTES * _STEP_BYTES


def _steady(
    before: tuple[DeviceRecord, ...], now: tuple[DeviceRecord, ...], limit: Limit
) -> tuple[DeviceRecord, ...]:
    known = {device.id: device for device in before}
    return tuple(
        device
        if (old := known.get(device.id)) is None
        else _calm(old, device, limit.ram_bytes if device.id == RAM else limit.vram_bytes)
        for device in now
    )


def _calm(old: DeviceRecord, new: DeviceRecord, limit_bytes: int | None) -> DeviceRecord:
    noise = max(_NOISE_BYTES, int(new.total_bytes * _NOISE_SHARE))
    if limit_bytes is not None:
        # Of a small share, what is noise to the machine is much; and the limit itself is none.
        moved = abs(new.plannable_bytes - old.plannable_bytes)
        if moved > min(noise, max(_STEP_BYTES, int(limit_bytes * _NOISE_SHARE))):
            return new
        if moved and new.plannable_bytes == limit_bytes:
            return new
    if replace(new, free_bytes=old.free_bytes, plannable_bytes=old.plannable_bytes) != old:
        return new
    moved = max(
        abs(new.free_bytes - old.free_bytes), abs(new.plannable_bytes - old.plannable_bytes)
    )
    return new if moved > noise else old
