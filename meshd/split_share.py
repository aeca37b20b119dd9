"""A node's part in splits, as far as one pass of the pipeline decides it. Pure.

Between the offers and the plan for this node's devices: which arrangements are over, which new ones
there could be, what this node lends, and how far the splits are that it hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from meshd.config.settings import Config, ModelSettings, Role, Split
from meshd.config.split_ports import ways
from meshd.engine.build import EngineBuild
from meshd.guard.status import GuardStatus
from meshd.mesh.record import Assignment, NodeRecord, Offer, Stage
from meshd.mesh.view import MeshView, Status
from meshd.own_record import memory_uses
from meshd.planner.claims import Own
from meshd.planner.hosting import Hosting, arranged, hosting
from meshd.planner.layout import Budgets
from meshd.planner.lending import Lending, Terms, lend
from meshd.planner.lent import Lent
from meshd.planner.pipeline import pipeline_offer, with_speed
from meshd.planner.place import budgets_of
from meshd.planner.plan import Code, Decision, Reason, Strategy
from meshd.planner.same_engine import engines_differ
from meshd.planner.view import NodeView, Running
from meshd.seeding.wish import SeedState
from meshd.split_room import less, short
from meshd.split_watch import Troubles


@dataclass(frozen=True, slots=True)
class Splits:
    """What a node knows of splits when a pass begins.

    :ivar lent: what it lends. :ivar guards: of this node, by instance, those that answer.
    :ivar seeds: by instance, how far the weight cache is.
    :ivar addresses: of the other nodes, without ports.
    """

    lent: tuple[Lent, ...] = ()
    guards: Mapping[str, GuardStatus] = field(default_factory=dict)
    seeds: Mapping[str, SeedState] = field(default_factory=dict)
    troubles: Troubles = field(default_factory=Troubles)
    addresses: Mapping[str, str] = field(default_factory=dict)


def with_lent(node: NodeView, lent: tuple[Lent, ...], view: MeshView) -> NodeView:
    """The node with what it lends; a host that answers in the same term has filled that memory."""
    resident = frozenset(
        one.name
        for one in lent
        if (host := view.member(one.host)) is not None
        and host.status is Status.ALIVE
        and (assignment := host.record.assignment(one.model)) is not None
        and (assignment.stage, assignment.term) == (Stage.READY, one.term)
    )
    return replace(node, lent=lent, lent_resident=resident)


def lending(
    node: NodeView,
    config: Config,
    build: EngineBuild | None,
    view: MeshView,
    own: Iterable[Assignment],
    lent: tuple[Lent, ...],
    *,
    early: bool,
    draining: bool,
) -> Lending:
    """What this node lends from now on. :param own: its own assignments, whose memory it keeps."""
    budgets = budgets_of(node, config)
    for one in own:
        if one.stage is not Stage.FAILED:
            budgets = less(budgets, one.memory)
    unwilling = ""
    if config.node.role is Role.CLIENT:
        unwilling = "its role is client"
    elif draining:
        unwilling = "it is being drained"
    terms = Terms(build, budgets, config.mesh.split_ports, unwilling, early, config.node.limit)
    return lend(view, lent, terms)


def terms_of(terms: Mapping[str, int], node: NodeView, view: MeshView) -> dict[str, int]:
    """The highest term that is known to have been used, by model: a brain that is new, or its whole
    machine, does not remember, but what runs and what others lend it does. No term may mean two
    arrangements to them.

    :param terms: that this brain has used.
    """
    known = dict(terms)
    found = [(one.decision.model, one.decision.term) for one in node.running]
    found += [
        (lease.model, lease.term)
        for member in view.members
        for lease in member.record.leases
        if lease.host == view.me
    ]
    for model, term in found:
        known[model] = max(term, known.get(model, 0))
    return known


def taken_up(own: Iterable[Own], node: NodeView) -> tuple[Own, ...]:
    """What a new brain took up of an earlier one, with what that had decided. Nobody may know the
    model yet, so that there is no offer that says how much memory it takes.
    """
    running = {one.decision.model: one.decision for one in node.running}
    return tuple(
        one
        if (decision := running.get(one.assignment.model)) is None
        else replace(one, assignment=_as_decided(one.assignment, decision, node))
        for one in own
    )


def _as_decided(assignment: Assignment, decision: Decision, node: NodeView) -> Assignment:
    assignment = replace(assignment, term=max(assignment.term, decision.term))
    if assignment.memory or assignment.stage is Stage.CLAIMED:
        return assignment
    return replace(assignment, memory=memory_uses(decision, node), parts=decision.parts)


def that_go_on(
    node: NodeView,
    view: MeshView,
    splits: Splits,
    settings: Mapping[str, ModelSettings],
    rooms: Mapping[str, Budgets],
    first_port: int,
    *,
    early: bool = False,
) -> NodeView:
    """The node without the pipelines whose arrangement is over: they are planned afresh.

    :param rooms: as `rooms_beside`. :param first_port: of this node's ports for splits.
    :param early: others may be there that this node has not heard of yet.
    """

    def goes_on(one: Running) -> bool:
        decision = one.decision
        if decision.strategy is not Strategy.PIPELINE:
            return True
        # Members may take minutes to seed: what was free then may not be now.
        begins = not one.resident and not one.loading
        if begins and short(decision, rooms.get(decision.model)):
            return False
        if not set(decision.local_ports) <= set(ways(first_port)):
            return False
        return not over(decision, view, splits.troubles, settings, early=early)

    return replace(node, running=tuple(filter(goes_on, node.running)))


def over(
    decision: Decision,
    view: MeshView,
    troubles: Troubles,
    settings: Mapping[str, ModelSettings],
    *,
    early: bool = False,
) -> str:
    """Why an arrangement of this node's cannot go on; empty when it can."""
    asked = settings.get(decision.model)
    if asked is not None and asked.split is Split.NEVER:
        return "models[].split is never"
    if (decision.model, decision.term) in troubles.spoiled:
        return "its connections were lost"
    own = view.member(view.me)
    for node in decision.members:
        member = view.member(node)
        if member is None:
            # Who was not heard of yet: what runs is no worse for that.
            if len(view.members) > 1 and not early:
                return f"{node} is gone"
            continue
        if member.record.draining:
            return f"{member.record.name or node} is being drained"
        if member.status is Status.ALIVE and own is not None:
            differ = engines_differ(own.record, member.record)
            if differ and own.record.engine is not None:
                return differ
    return ""


def that_begin(pipelines: Iterable[Decision], node: NodeView) -> frozenset[str]:
    """Models whose split is arranged in this pass: nothing of it runs yet."""
    known = {(one.decision.model, one.decision.term) for one in node.running}
    return frozenset(one.model for one in pipelines if (one.model, one.term) not in known)


def with_pipelines(
    decisions: Iterable[Decision],
    node: NodeView,
    config: Config,
    settings: Mapping[str, ModelSettings],
    build: EngineBuild | None,
    view: MeshView,
    splits: Splits,
    terms: Mapping[str, int],
    rooms: Mapping[str, Budgets],
) -> tuple[Decision, ...]:
    """Each decision, or the pipeline that is faster or that alone is possible.

    :param terms: the highest that this node has used, by model.
    :param rooms: as `rooms_beside`.
    """
    hosts = [one.decision for one in node.running if one.decision.links]
    result = []
    for decision in decisions:
        if decision.model not in settings or decision.strategy is Strategy.PIPELINE:
            result.append(decision)
            continue
        if decision.strategy is Strategy.SOLO_GPU or _runs(node, decision.model):
            result.append(with_speed(decision, node, view))
            continue
        found = decision
        # Without those that others are better than, if that is possible.
        for left_out in _choices(splits.troubles):
            found = pipeline_offer(
                node,
                config,
                settings[decision.model],
                view,
                view.me,
                build=build,
                excluded=left_out,
                solo=decision,
            )
            if found.strategy is Strategy.PIPELINE:
                break
        if found.strategy is Strategy.PIPELINE and short(found, rooms.get(found.model)):
            # A search that finds no idle memory takes what others hold, for those to give way. What
            # runs already is past that: it waits, and the mesh's plan finds it a place.
            text = "other models hold the memory that its split would take here"
            found = decision
            if not decision.served:
                found = replace(decision, blockers=(Reason(Code.NO_MEMORY, text),))
        if found.strategy is Strategy.PIPELINE:
            try:
                found = arranged(
                    found,
                    hosts,
                    splits.addresses,
                    term=terms.get(decision.model, 0) + 1,
                    first_port=config.mesh.split_ports,
                )
            except ValueError as error:
                found = replace(decision, blockers=(Reason(Code.UNREACHED, str(error)),))
        result.append(found)
    return tuple(result)


def _choices(troubles: Troubles) -> tuple[Mapping[str, str], ...]:
    if not troubles.avoided:
        return (troubles.excluded,)
    return {**troubles.avoided, **troubles.excluded}, troubles.excluded


def hostings(
    decisions: Iterable[Decision], view: MeshView, splits: Splits
) -> Mapping[str, Hosting]:
    """By model, how far each pipeline is that this node runs."""
    found: dict[str, Hosting] = {}
    for decision in decisions:
        if decision.strategy is not Strategy.PIPELINE:
            continue
        one = hosting(decision, view, splits.guards)
        held_s = splits.troubles.held.get(decision.model, 0.0)
        if held_s and one.stands:
            one = replace(one, stands=False, waits=f"starts again in {held_s:.0f} s")
        found[decision.model] = one
    return found


def without_lost(
    assignments: Iterable[Assignment], offers: Iterable[Offer]
) -> tuple[Assignment, ...]:
    """Without the splits that cannot be arranged any more: the mesh's plan decides anew, and the
    node may get the model back when somebody can take part again.
    """
    by_model = {offer.model: offer for offer in offers}
    return tuple(
        one
        for one in assignments
        if not (
            one.parts
            and one.stage in (Stage.LOADING, Stage.READY, Stage.FAILED)
            and (offer := by_model.get(one.model)) is not None
            and offer.strategy == Strategy.WAIT
        )
    )


def addresses_of(view: MeshView, best: Mapping[str, str]) -> dict[str, str]:
    """Where other nodes are, without ports. :param best: ``host:port`` known to answer, by node."""
    found = {}
    for member in view.members:
        record: NodeRecord = member.record
        address = best.get(member.id) or next(iter(record.addresses), "")
        if address:
            found[member.id] = address.rpartition(":")[0].strip("[]")
    return found


def _runs(node: NodeView, model: str) -> bool:
    return any(one.decision.model == model for one in node.running)
