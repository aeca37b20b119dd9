"""What a node says of itself, to `meshd status`, the console and the routing table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from meshd import __version__
from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from meshd.load_times import Load
from meshd.mesh.record import ShardStage
from meshd.own_record import capabilities
from meshd.planner.plan import Code, Decision, Plan, Strategy
from meshd.planner.view import NodeView
from meshd.shard_line import ShardStatus
from meshd.units.spec import EngineKind, EngineState, EngineStatus

# Notes about GPUs stand among the blockers of a model that does not fit.
STANDING = frozenset(
    {Code.ROLE, Code.NO_MEMORY, Code.NEVER_SPLIT, Code.NO_GPU, Code.NO_GPU_BACKEND}
)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model of the config.

    :ivar memory_bytes: as planned, over all devices.
    :ivar standing: it waits for what is as the configuration means it or the machine is, not for
        something that was mistaken or is missing.
    :ivar nodes: names of the other nodes that serve it or are about to.
    :ivar over: of a split, names of the nodes that it lies over beside this one.
    :ivar progress: of loading, 0 to 1 in steps of a tenth; 0 when it is not known.
    :ivar idle: nobody asks for it, and it is loaded only when somebody does.
    :ivar tokens_s: predicted decode speed of one request, 0 when unknown.
    :ivar shards: all nodes' expert shards of it, this node's first.
    """

    name: str
    state: ModelState
    strategy: str
    unit: str
    pid: int | None
    restarts: int
    context: int
    slots: int
    memory_bytes: int
    detail: str
    reasons: tuple[str, ...] = ()
    standing: bool = False
    nodes: tuple[str, ...] = ()
    idle: bool = False
    over: tuple[str, ...] = ()
    progress: float = 0.0
    tokens_s: float = 0.0
    shards: tuple[ShardStatus, ...] = ()

    @property
    def shard(self) -> ShardStatus | None:
        """The one that it is to be served from here."""
        if self.strategy != Strategy.EXPERT_SHARD:
            return None
        return next((one for one in self.shards if one.me and one.stage == ShardStage.READY), None)


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """What part a node has in the mesh. :ivar problem: why it is not reached, one sentence, or "".

    :ivar nodes: alive ones, this one included; ``suspect`` those that are missed just now.
    """

    id: str
    node: str
    nodes: int
    suspect: int = 0
    core: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DrainStatus:
    """How far a node is that is being drained.

    :ivar left_s: so long have answers that still run.
    :ivar running: requests that its engines have, by model.
    :ivar engines: models whose engines still run.
    :ivar cut: requests that had not ended when their time was over.
    """

    left_s: float
    running: Mapping[str, int]
    engines: tuple[str, ...] = ()
    cut: int = 0

    @property
    def done(self) -> bool:
        return not self.engines

    @property
    def words(self) -> str:
        if self.done:
            return "drained"
        count = sum(self.running.values())
        return f"draining, {count} {'request runs' if count == 1 else 'requests run'}"


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """:ivar bandwidth_bytes_s: effective, as measured, 0 before; ``flops_s`` with a prompt."""

    id: str
    name: str
    total_bytes: int
    free_bytes: int
    bandwidth_bytes_s: int = 0
    flops_s: int = 0


@dataclass(frozen=True, slots=True)
class LentStatus:
    """What a node lends to one split.

    :ivar host: name of the node that serves the model.
    :ivar stage: `mesh.record.LeaseStage`; ``progress`` of seeding, 0 to 1.
    """

    model: str
    host: str
    layers: int
    size_bytes: int
    stage: str
    progress: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """A unit that is no model's engine: an rpc-server or a guard of a split.

    :ivar state: `units.spec.EngineState`. :ivar detail: how it ended last, "" while it runs.
    """

    unit: str
    state: str
    restarts: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """:ivar degraded: sentences that say what is not as it should be; empty when all is well.

    :ivar problems: of the hardware, for people.
    :ivar lends: what it gives to models that other nodes serve.
    :ivar units: rpc-servers and guards; models have those of their engines.
    """

    node: str
    role: str
    sentence: str
    degraded: tuple[str, ...]
    generation: int
    engine: str
    gateway: tuple[str, ...]
    console: str
    devices: tuple[DeviceStatus, ...]
    models: tuple[ModelStatus, ...]
    problems: tuple[str, ...] = ()
    trial_ends_s: float | None = None
    version: str = __version__
    mesh: MeshStatus | None = None
    drain: DrainStatus | None = None
    lends: tuple[LentStatus, ...] = ()
    units: tuple[UnitStatus, ...] = ()

    def model(self, name: str) -> ModelStatus | None:
        return next((model for model in self.models if model.name == name), None)

    @property
    def healthy(self) -> bool:
        reached = self.mesh is None or not self.mesh.problem
        served = all(m.state is ModelState.READY or m.idle for m in self.models)
        return reached and served and not self.degraded and self.drain is None

    @property
    def good(self) -> bool:
        """Whether this configuration is worth going back to: all that it can serve is served."""
        return (
            self.drain is None
            and not self.degraded
            and all(m.state is ModelState.READY or m.standing for m in self.models)
        )


def model_status(decision: Decision, engine: EngineStatus | None, *, answers: bool) -> ModelStatus:
    """Join what was decided, what runs, and whether its health check passed (`answers`)."""
    state, detail = _state(decision, engine, answers=answers)
    return ModelStatus(
        name=decision.model,
        state=state,
        strategy=decision.strategy,
        unit=engine.unit if engine else "",
        pid=engine.pid if engine else None,
        restarts=engine.restarts if engine else 0,
        context=decision.context,
        slots=decision.slots,
        memory_bytes=decision.memory_bytes,
        detail=detail,
        reasons=tuple(reason.text for reason in (*decision.reasons, *decision.blockers)),
        standing=bool(decision.blockers)
        and {reason.code for reason in decision.blockers} <= STANDING,
        tokens_s=decision.tokens_s,
    )


def _state(
    decision: Decision, engine: EngineStatus | None, *, answers: bool
) -> tuple[ModelState, str]:
    if not decision.served:
        blockers = "; ".join(reason.text for reason in decision.blockers)
        return ModelState.WAITING, ". ".join(filter(None, (blockers, decision.next_step)))
    if engine is None:
        return ModelState.LOADING, "not started yet"
    if engine.state in (EngineState.BACKOFF, EngineState.FAILED):
        return ModelState.FAILED, engine.detail or f"the engine is in state {engine.state}"
    if engine.state is EngineState.RUNNING and answers:
        return ModelState.READY, ""
    return ModelState.LOADING, engine.detail or "loading"


def with_trouble(model: ModelStatus, *, failed: str, trouble: str, progress: float) -> ModelStatus:
    """With what is known beyond that its engine runs.

    :param failed: why its engine is not to run for now, ``trouble`` what is wrong with it; or "".
    :param progress: of loading, 0 to 1.
    """
    if failed:
        return replace(model, state=ModelState.FAILED, detail=f"{failed}; it is tried again later")
    if model.state is not ModelState.LOADING:
        return model
    return replace(model, detail=trouble or model.detail, progress=0.0 if trouble else progress)


def split_units(engines: tuple[EngineStatus, ...]) -> tuple[UnitStatus, ...]:
    """Those of splits, by name; what was stopped on purpose is not there."""
    return tuple(
        UnitStatus(one.unit, str(one.state), one.restarts, one.detail)
        for one in sorted(engines, key=lambda one: one.unit)
        if one.kind is not EngineKind.LLAMA and one.state is not EngineState.STOPPED
    )


def sentence(models: tuple[ModelStatus, ...], degraded: tuple[str, ...]) -> str:
    """One line for STATUS= and for people: what works first, then what does not."""
    if not models:
        text = "no models in the configuration"
    else:
        ready = [m.name for m in models if m.state is ModelState.READY]
        text = f"serving {len(ready)} of {len(models)} models"
        if ready:
            text += f" ({_few(ready)})"
        for state in ModelState:
            if state is ModelState.READY:
                continue
            names = [m.name for m in models if m.state is state]
            if names:
                text += f"; {state}: {_few(names)}"
    return "; ".join((*degraded, text))


def in_order(models: tuple[ModelStatus, ...], first: list[str]) -> tuple[ModelStatus, ...]:
    """As the node's own configuration lists them, then the others by name."""
    place = {name: index for index, name in enumerate(first)}
    return tuple(sorted(models, key=lambda one: (place.get(one.name, len(first)), one.name)))


def _few(names: list[str], most: int = 4) -> str:
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def routing_table(
    plan: Plan,
    node: NodeView,
    models: tuple[ModelStatus, ...],
    *,
    aliases: dict[str, tuple[str, ...]],
    qualities: dict[str, str],
    sockets: dict[str, str],
    max_body_bytes: int,
    generation: int,
    front: Front | None = None,
    loads: Mapping[str, Load] | None = None,
) -> RoutingTable:
    """The gateway's table; `sockets` maps a model to its engine's Unix socket.

    :param loads: those under way, by model.
    """
    routes = []
    for decision, model in zip(plan.decisions, models, strict=True):
        candidate = node.candidate(decision.model)
        facts = candidate.facts if candidate else None
        targets: tuple[Target, ...] = ()
        load = (loads or {}).get(decision.model)
        shard = decision.shard
        if decision.served:
            targets = (
                Target(
                    node=node.id,
                    name=node.name,
                    socket=sockets[decision.model],
                    ready=model.state is ModelState.READY,
                    slots=decision.slots,
                    context=decision.context,
                    load_s=load.load_s if load else 0.0,
                    since_s=load.since_s if load else 0.0,
                    split=bool(decision.links),
                    shard=shard.key if shard else "",
                    experts=shard.experts if shard else 0,
                    experts_all=shard.experts_all if shard else 0,
                    measured=shard.measured if shard else (),
                ),
            )
        routes.append(
            Route(
                model=decision.model,
                state=model.state,
                targets=targets,
                aliases=aliases.get(decision.model, ()),
                context=decision.context,
                quality=qualities.get(decision.model, "exact"),
                capabilities=capabilities(facts) if facts else (),
                created_s=candidate.modified_s if candidate else 0,
                detail=model.detail,
            )
        )
    return RoutingTable(
        generation=generation,
        node=node.id,
        routes=tuple(routes),
        max_body_bytes=max_body_bytes,
        front=front or Front(),
    )


def engine_of(statuses: tuple[EngineStatus, ...], model: str) -> EngineStatus | None:
    return next((s for s in statuses if s.kind is EngineKind.LLAMA and s.name == model), None)
