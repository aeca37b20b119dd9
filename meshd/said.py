"""What a pass has to say: the plan's report, the node's status, and the gateway's table. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from meshd.config.load import Loaded
from meshd.config.settings import Config, GatewaySettings
from meshd.drain import Drain
from meshd.gateway.routes import Front, ModelState, Route, RoutingTable
from meshd.instance import instance_name
from meshd.load_times import Load
from meshd.mesh_routes import Ways, with_former, with_mesh
from meshd.mesh_status import elsewhere_status, followed_status, placed, with_others
from meshd.paths import Paths
from meshd.pipeline import Answers, Proposal
from meshd.planner.layout import RAM
from meshd.planner.view import NodeView
from meshd.progress import Verdict
from meshd.quality import quality_of
from meshd.report import Change, PlanReport
from meshd.shard_status import with_shards
from meshd.split_status import lent_status, with_split
from meshd.status import (
    DeviceStatus,
    DrainStatus,
    MeshStatus,
    ModelStatus,
    NodeStatus,
    engine_of,
    in_order,
    model_status,
    routing_table,
    sentence,
    split_units,
    with_trouble,
)
from meshd.units.spec import EngineKind, EngineState

Verdicts = Callable[[str, int | None], Verdict | None]

_DRAINED = "this node is being drained; `meshd drain --undo` ends that"


def report(proposal: Proposal, loaded: Loaded) -> PlanReport:
    return PlanReport(
        decisions=proposal.plan.decisions,
        changes=tuple(
            Change(str(action.kind), action.unit, action.reason, action.load_bytes)
            for action in proposal.actions
        ),
        warnings=(*map(str, loaded.findings), *proposal.refused),
        mesh=placed(proposal.share) if proposal.share else (),
    )


def node_status(
    loaded: Loaded,
    proposal: Proposal,
    answers: Answers,
    *,
    degraded: tuple[str, ...],
    generation: int,
    trial_ends_s: float | None,
    mesh: MeshStatus | None = None,
    ways: Ways | None = None,
    drain: DrainStatus | None = None,
    verdicts: Verdicts | None = None,
    progress: Mapping[str, float] | None = None,
) -> NodeStatus:
    """:param progress: of loads, 0 to 1, by model."""
    here = []
    for decision in proposal.plan.decisions:
        engine = engine_of(proposal.engines, instance_name(decision.model))
        ready = engine is not None and answers(engine.unit, engine.pid)
        found = verdicts(engine.unit, engine.pid) if verdicts and engine else None
        model = with_trouble(
            model_status(decision, engine, answers=ready),
            failed=proposal.failed.get(decision.model, ""),
            trouble=found.why if found else "",
            progress=(progress or {}).get(decision.model, 0.0),
        )
        if proposal.share is not None:
            waits = proposal.waiting.get(decision.model, "")
            model = with_split(model, decision, proposal.share, waits)
        here.append(model)
    elsewhere: tuple[ModelStatus, ...] = ()
    if proposal.share is not None:
        here = [with_others(model, proposal.share) for model in here]
        elsewhere = elsewhere_status(proposal.share, {model.name for model in here})
    elif ways is not None and ways.followed is not None:
        here, elsewhere = [], followed_status(ways.followed)
    elif drain is not None:
        here = [replace(one, state=ModelState.DRAINED, detail=_DRAINED) for one in here]
    known = [_with_shards(model, proposal) for model in (*here, *elsewhere)]
    models = in_order(tuple(known), [model.name for model in loaded.config.models])
    degraded = (*degraded, *proposal.refused)
    said = (drain.words if drain else "", *degraded, mesh.problem if mesh else "")
    config = loaded.config
    return NodeStatus(
        node=proposal.node.name,
        role=config.node.role,
        # Whether others can be reached says nothing of this node's configuration.
        sentence=sentence(models, tuple(filter(None, said))),
        degraded=degraded,
        generation=generation,
        engine=proposal.engine,
        gateway=config.gateway.listen,
        console=config.console.listen if config.console.enabled else "",
        devices=_devices(proposal.node),
        models=models,
        problems=proposal.problems,
        trial_ends_s=trial_ends_s,
        mesh=mesh,
        drain=drain,
        lends=lent_status(proposal.share) if proposal.share else (),
        units=split_units(proposal.engines),
    )


def _with_shards(model: ModelStatus, proposal: Proposal) -> ModelStatus:
    decision = proposal.plan.decision(model.name)
    candidate = proposal.node.candidate(model.name)
    share = proposal.share
    placement = share.plan.placement(model.name) if share else None
    return with_shards(
        model,
        decision.shard if decision else None,
        proposal.node.name,
        share.view if share else None,
        experts_all=candidate.facts.experts if candidate and candidate.facts else 0,
        budget=quality_of(placement.quality) if placement else None,
    )


def drain_status(
    drain: Drain | None, proposal: Proposal, busy: Mapping[str, int], now_s: float, cut: int
) -> DrainStatus | None:
    """:param busy: requests that engines have, by model. :param cut: as in `DrainStatus`."""
    if drain is None:
        return None
    running = tuple(
        sorted(
            engine.name
            for engine in proposal.engines
            if engine.kind is EngineKind.LLAMA and engine.state is not EngineState.STOPPED
        )
    )
    busy = dict(busy) if running else {}
    return DrainStatus(round(drain.left_s(now_s), 1), busy, running, cut)


def routes(
    config: Config,
    proposal: Proposal,
    status: NodeStatus,
    paths: Paths,
    before: RoutingTable | None,
    ways: Ways | None = None,
    loads: Mapping[str, Load] | None = None,
) -> RoutingTable:
    """The gateway's table; its generation moves only when something in it did."""
    mine = proposal.share
    models = config.models if mine is None else mine.config.models
    table = routing_table(
        proposal.plan,
        proposal.node,
        tuple(filter(None, map(status.model, proposal.plan.names))),
        aliases={model.name: model.aliases for model in models},
        qualities={model.name: str(model.quality) for model in models},
        sockets={
            name: str(paths.engine_socket(instance_name(name))) for name in proposal.plan.names
        },
        max_body_bytes=config.gateway.max_body_bytes,
        front=front(config.gateway),
        generation=before.generation if before else 0,
        loads=loads,
    )
    if ways is not None:
        table = with_mesh(table, mine, ways)
        if mine is not None and mine.early and before is not None:
            heard = frozenset(member.id for member in mine.view.members)
            table = with_former(table, before, heard)
    elif status.drain is not None:
        table = replace(table, routes=tuple(map(_refused, table.routes)))
    return table if table == before else replace(table, generation=table.generation + 1)


def _refused(route: Route) -> Route:
    """Of a node that is alone and drained: what runs ends, nothing new begins."""
    return replace(route, targets=(), state=ModelState.DRAINED, detail=_DRAINED)


def front(settings: GatewaySettings) -> Front:
    """What the gateway is told of how it meets its clients."""
    return Front(
        hosts=settings.hosts,
        origins=settings.origins,
        certificate=settings.tls.certificate,
        key=settings.tls.key,
        wait_s=settings.wait_s,
        queue=settings.queue,
        local_keys=settings.local_keys,
        otlp=settings.otlp,
    )


def _devices(node: NodeView) -> tuple[DeviceStatus, ...]:
    hardware = node.hardware
    found = [(gpu.id, gpu.name, gpu.total_bytes, gpu.free_bytes) for gpu in hardware.gpus]
    found.append((RAM, hardware.cpu.name, hardware.ram.total_bytes, hardware.ram.available_bytes))
    devices = []
    for device, name, total_bytes, free_bytes in found:
        speed = node.speed(device)
        figures = (speed.bandwidth_bytes_s, speed.flops_s) if speed else (0, 0)
        devices.append(DeviceStatus(device, name, total_bytes, free_bytes, *figures))
    return tuple(devices)
