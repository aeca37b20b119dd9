"""The pipeline from what was observed to what has to be done: view, plan, render, diff. Pure.

Boot, reload, a trial, `meshd plan` and a change on the node all come through `propose`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from meshd.config.settings import Config
from meshd.deeds import EngineNow
from meshd.engine.backends import backend_for
from meshd.engine.build import EngineBuild
from meshd.engine_specs import engine_specs
from meshd.errors import UserError
from meshd.instance import instance_name
from meshd.mesh.record import HeldModel
from meshd.mesh_share import Around, Share, share
from meshd.node.inventory import Hardware
from meshd.node.selection import select_gpus
from meshd.node.speed import Speed
from meshd.paths import Paths
from meshd.planner.claims import Engine
from meshd.planner.lent import Lent
from meshd.planner.place import plan
from meshd.planner.plan import Plan
from meshd.planner.view import Candidate, ClusterView, NodeView, Running
from meshd.revival import Revival
from meshd.status import (
    engine_of,
)
from meshd.units.diff import Action, changes, diff
from meshd.units.render import attempt_in, render_dropin
from meshd.units.spec import EngineSpec, EngineState, EngineStatus

Answers = Callable[[str, int | None], bool]
"""Whether the engine of a unit, as this pid, passed its last health check."""

# An engine that fell so often in a row is not about to serve; in a mesh another node may try.
_RESTARTS_MOST = 3
_SPLIT_RESTARTS_MOST = 8


@dataclass(frozen=True, slots=True)
class Sought:
    """A model that another node names. :ivar fingerprint: of its content, "" when unknown."""

    model: str
    source: str
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """What this node measured.

    :ivar engine_problem: why `engine` is None.
    :ivar candidates: the models of its configuration, then those that it was asked to look for.
    :ivar held: all models in its folders.
    :ivar speeds: of its devices, those that were measured.
    """

    hardware: Hardware
    engine: EngineBuild | None
    engine_problem: str
    candidates: tuple[Candidate, ...]
    held: tuple[HeldModel, ...] = ()
    speeds: tuple[Speed, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """One run of the pipeline.

    :ivar running: what will run when `actions` are done; a later run's view is made of it.
    :ivar refused: specs that could not be made, one sentence a model.
    :ivar share: of the mesh's plan, None where the node is alone.
    :ivar left_alone: units that run on as they are although `specs` has none for them.
    :ivar waiting: by model, what its split waits for before its engine starts.
    :ivar lent: what this node lends to others' splits.
    :ivar failed: by model, why its engine is not to run for now.
    """

    node: NodeView
    plan: Plan
    specs: tuple[EngineSpec, ...]
    actions: tuple[Action, ...]
    engines: tuple[EngineStatus, ...]
    running: tuple[Running, ...]
    refused: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    engine: str = ""
    share: Share | None = None
    left_alone: tuple[str, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    lent: tuple[Lent, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


def propose(
    config: Config,
    observation: Observation,
    engines: tuple[EngineStatus, ...],
    running: tuple[Running, ...],
    paths: Paths,
    around: Around | None = None,
    given_up: frozenset[str] = frozenset(),
    revival: Revival | None = None,
) -> Proposal:
    """One run from what was observed to what has to be done.

    :param around: the rest of the mesh; without it the node serves its own configuration.
    :param given_up: models whose engines are not to run, whatever the plan says.
    :param revival: what is done about engines that hang or run out of memory.
    """
    revival = revival or Revival()
    node = replace(node_view(config, observation, running), ceilings=revival.ceilings)
    mine = None
    if around is not None:
        node = replace(node, id=around.self.id)
        mine = share(config, node, observation.engine, observation.held, around)
        config = mine.config
        node = replace(node, lent=mine.lent)
    others = mine.others if mine is not None else ()
    decided = {**mine.pipelines, **mine.sharded} if mine is not None else {}
    planned = plan(ClusterView(node.id, (node,)), config, others, decided)
    found = engine_specs(
        planned,
        node,
        config,
        observation.engine,
        observation.hardware,
        engines,
        paths,
        mine,
        given_up,
        revival,
    )
    specs, refused = found.specs, found.refused
    # What cannot be said to this engine build is no reason to stop what runs of another.
    # Nor is a name that nobody knows here yet, or any more, to stop what answers.
    kept = mine.kept if mine is not None else frozenset()
    left_alone = {*refused, *found.kept, *map(instance_name, kept)}
    left_alone -= {spec.name for spec in specs}
    going_on = tuple(one for one in running if one.decision.model in kept)
    touched = [engine for engine in engines if engine.name not in left_alone]
    actions = tuple(
        _with_reason(action, engines, specs, revival)
        for action in changes(diff(touched, specs, partial(render_dropin, paths=paths)))
    )
    return Proposal(
        node=node,
        plan=Plan((*planned.decisions, *(one.decision for one in going_on))),
        specs=tuple(specs),
        actions=actions,
        engines=engines,
        running=(*_running(node, planned), *going_on),
        refused=tuple(refused.values()),
        problems=observation.hardware.problems,
        engine=_engine_words(observation),
        share=mine,
        left_alone=tuple(engine.unit for engine in engines if engine.name in left_alone),
        waiting=found.waiting,
        lent=mine.lent if mine is not None else (),
        failed=revival.failed,
    )


def _with_reason(
    action: Action,
    engines: tuple[EngineStatus, ...],
    specs: list[EngineSpec],
    revival: Revival,
) -> Action:
    """Nobody changed a setting of an engine that is restarted because it hangs."""
    spec = next((one for one in specs if one.unit == action.unit), None)
    engine = next((one for one in engines if one.unit == action.unit), None)
    if spec is None or engine is None or spec.attempt <= attempt_in(engine.text):
        return action
    return replace(action, reason=revival.reasons.get(action.unit, action.reason))


def node_view(config: Config, observation: Observation, running: tuple[Running, ...]) -> NodeView:
    """Our own part of the view; pinned GPUs that are missing fail closed."""
    gpu_problem = ""
    try:
        gpus = select_gpus(observation.hardware, config.node.gpus)
    except UserError as error:
        gpus, gpu_problem = (), str(error)
    build = observation.engine
    backends = build.backends if build else ()
    return NodeView(
        id=observation.hardware.hostname,
        hardware=observation.hardware,
        gpus=tuple(gpu for gpu in gpus if backend_for(gpu.vendor, backends)),
        gpu_problem=gpu_problem,
        engine=build is not None,
        candidates=observation.candidates,
        running=running,
        name=config.node.name or observation.hardware.hostname,
        speeds=observation.speeds,
    )


def with_residency(
    running: tuple[Running, ...], engines: tuple[EngineStatus, ...], answers: Answers
) -> tuple[Running, ...]:
    """Mark whose memory is taken: an engine that answers has loaded.

    One that is not there at all is planned afresh: what fitted in another life may not fit now. A
    split is there from when its members are asked, before any engine.
    """
    marked = []
    for one in running:
        engine = engine_of(engines, instance_name(one.decision.model))
        if one.decision.links and (engine is None or engine.state is EngineState.STOPPED):
            marked.append(replace(one, resident=False, loading=False))
        elif engine is not None and engine.state is not EngineState.STOPPED:
            resident = answers(engine.unit, engine.pid)
            loading = not resident and engine.pid is not None
            marked.append(replace(one, resident=resident, loading=loading))
    return tuple(marked)


def engines_now(
    running: tuple[Running, ...],
    engines: tuple[EngineStatus, ...],
    last: Proposal | None,
    errors: tuple[str, ...] = (),
    revival: Revival | None = None,
    progress: Mapping[str, float] | None = None,
) -> dict[str, EngineNow]:
    """How the engine of each model is that this node runs or should, for the mesh.

    :param running: with residency marked. :param last: the pass before: what could not be done
        although the mesh's plan wants it is for another node to do. :param errors: of its applying.
    :param progress: of loads, 0 to 1, by model.
    """
    found: dict[str, EngineNow] = {}
    for decision in last.plan.decisions if last else ():
        # Of one that runs more is known, below.
        detail = "; ".join(reason.text for reason in decision.blockers)
        if last and decision.served:
            about = (f"{decision.model}: ", f"mesh-llama@{instance_name(decision.model)}.service")
            lines = [line for line in (*last.refused, *errors) if line.startswith(about)]
            detail = "; ".join(lines) or "its engine is not there"
        waits = last.waiting.get(decision.model) if last else None
        found[decision.model] = (
            EngineNow(Engine.FAILED, detail) if waits is None else EngineNow(Engine.STARTING, waits)
        )
    for one in running:
        name = instance_name(one.decision.model)
        engine = engine_of(engines, name)
        if engine is None:
            # Of an earlier life: its members may be seeding for minutes, and their ends are up.
            begins = one.decision.links and any(other.name == name for other in engines)
            if begins and one.decision.model not in found:
                found[one.decision.model] = EngineNow(Engine.STARTING, "its members are asked")
            continue
        # A split's engine ends with every connection that it loses: its guard says whose fault.
        most = _SPLIT_RESTARTS_MOST if one.decision.links else _RESTARTS_MOST
        failed = engine.state is EngineState.FAILED or (
            engine.state is EngineState.BACKOFF and engine.restarts >= most
        )
        state = Engine.FAILED if failed else Engine.STARTING
        if one.resident:
            state = Engine.ANSWERS
        model = one.decision.model
        found[model] = EngineNow(state, engine.detail, (progress or {}).get(model, 0.0))
    for model, why in revival.failed.items() if revival else ():
        if model in found:
            found[model] = EngineNow(Engine.FAILED, why)
    return found


def with_engines(proposal: Proposal, engines: tuple[EngineStatus, ...]) -> Proposal:
    """The same proposal after it was carried out, with what runs now."""
    return replace(proposal, engines=engines)


def _running(node: NodeView, planned: Plan) -> tuple[Running, ...]:
    running = []
    for decision in planned.decisions:
        candidate = node.candidate(decision.model)
        if decision.served and candidate is not None:
            running.append(Running(decision, candidate.identity, resident=False))
    return tuple(running)


def _engine_words(observation: Observation) -> str:
    build = observation.engine
    if build is None:
        return observation.engine_problem
    number = f" (b{build.build})" if build.build else ""
    return f"llama.cpp {build.version}{number}, {', '.join(build.backends)}"
