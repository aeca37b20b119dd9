"""From what was decided to the processes that carry it out: engines, rpc-servers, guards. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from meshd.config.settings import Config, Limit
from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.instance import instance_name
from meshd.mesh_share import Share
from meshd.node.inventory import Hardware
from meshd.paths import Paths
from meshd.planner.hosting import Hosting
from meshd.planner.layout import RAM
from meshd.planner.plan import Decision, Plan, Strategy
from meshd.planner.shard_offer import facts_served
from meshd.planner.view import NodeView
from meshd.revival import Revival
from meshd.units.guard import host_guard_spec, member_guard_spec
from meshd.units.llama import llama_spec
from meshd.units.render import render_dropin
from meshd.units.rpc import rpc_spec
from meshd.units.spec import ATTEMPTS_MOST, EngineKind, EngineSpec, EngineState, EngineStatus


@dataclass(slots=True)
class Specs:
    """:ivar refused: by instance, why its spec could not be made, one sentence.

    :ivar waiting: by model, what its split waits for before its engine starts.
    :ivar kept: instances that go on as they are although there is no spec for them.
    """

    specs: list[EngineSpec] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    waiting: dict[str, str] = field(default_factory=dict)


def engine_specs(
    plan: Plan,
    node: NodeView,
    config: Config,
    build: EngineBuild | None,
    hardware: Hardware,
    engines: tuple[EngineStatus, ...],
    paths: Paths,
    share: Share | None,
    given_up: frozenset[str],
    revival: Revival,
) -> Specs:
    """:param engines: those that run. :param given_up: models whose engines are not to run."""
    found = Specs()
    for decision in plan.decisions:
        candidate = node.candidate(decision.model)
        if not decision.served or candidate is None or candidate.facts is None:
            continue
        if decision.model in given_up or decision.model in revival.failed:
            continue
        assert build is not None
        name = instance_name(decision.model)
        if (EngineKind.LLAMA, name) in _names(found):
            found.refused[name] = f"{decision.model}: another model's engine has this name"
            continue
        try:
            facts = facts_served(decision, candidate.facts)
            engine = llama_spec(decision, facts, build, hardware, paths, config.node.limit)
            engine = _tried(engine, decision, node, config.node.limit, revival)
            if decision.strategy is not Strategy.PIPELINE:
                found.specs.append(engine)
                continue
            hosting = share.hostings.get(decision.model) if share else None
            guard = _guard(decision, hosting, build, paths)
        except UserError as error:
            found.refused[name] = f"{decision.model}: {error}"
            continue
        if guard is not None:
            found.specs.append(guard)
        elif _runs(engine, engines, paths):
            # Where a member's door is says its record, which a brain that is new may not have yet.
            # Without its guard the engine would end.
            found.kept.add(name)
            continue
        if hosting is not None and (hosting.stands or _runs(engine, engines, paths)):
            found.specs.append(engine)
        else:
            found.waiting[decision.model] = hosting.waits if hosting else "not in the mesh yet"
    for lent in share.lent if share else ():
        if build is None:
            found.refused[lent.name] = f"{lent.name}: the engine is gone"
            continue
        try:
            # Both or none: a door without a server behind it would only confuse the other side.
            both = (
                rpc_spec(lent, build, hardware, paths),
                member_guard_spec(lent, _host_of(config.mesh.listen), build, paths),
            )
        except UserError as error:
            found.refused[lent.name] = f"{lent.name}: {error}"
            continue
        if _names(found) & {(spec.kind, spec.name) for spec in both}:
            found.refused[lent.name] = f"{lent.name}: another unit has this name"
            continue
        found.specs.extend(both)
    return found


def _tried(
    spec: EngineSpec, decision: Decision, node: NodeView, limit: Limit, revival: Revival
) -> EngineSpec:
    """With the number of its try; what once ran out of memory may still use as much."""
    spec = replace(spec, attempt=min(revival.attempts.get(spec.unit, 0), ATTEMPTS_MOST))
    ceiling = node.ceilings.get(decision.model)
    if ceiling is None or spec.memory_max_bytes is None:
        return spec
    planned = sum(use.total_bytes for use in decision.memory if use.device == RAM)
    most = spec.memory_max_bytes + max(0, ceiling.failed_bytes - planned) * 5 // 4
    if limit.ram_bytes is not None:
        most = min(most, max(spec.memory_max_bytes, limit.ram_bytes))
    return replace(spec, memory_max_bytes=most)


def _names(found: Specs) -> set[tuple[EngineKind, str]]:
    return {(spec.kind, spec.name) for spec in found.specs}


def _guard(
    decision: Decision, hosting: Hosting | None, build: EngineBuild, paths: Paths
) -> EngineSpec | None:
    if hosting is None or not hosting.ways:
        return None
    return host_guard_spec(
        hosting.name,
        decision.model,
        decision.term,
        hosting.ways,
        decision.ubatch_s,
        build,
        paths,
    )


def _runs(spec: EngineSpec, engines: tuple[EngineStatus, ...], paths: Paths) -> bool:
    """Whether this very engine was started already: a member that is missed for a moment is no
    reason to stop it. Whether it still gets on is the guard's to say.
    """
    return any(
        engine.unit == spec.unit
        and engine.state not in (EngineState.STOPPED, EngineState.STOPPING)
        and engine.text == render_dropin(spec, paths)
        for engine in engines
    )


def _host_of(address: str) -> str:
    return address.rpartition(":")[0]
