"""A node's share of the mesh's plan: from what all nodes said to what this one runs and says. Pure.

Runs inside the pipeline, between `observe` and the plan for this node's own devices: offers are
made for every model that the mesh wants, the mesh's plan is worked out as every node does it, and
this node's assignments go one step towards it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from meshd.config.settings import Config, ModelSettings, Replicas, Role, Split
from meshd.engine.build import EngineBuild
from meshd.load_times import LoadTimes, content_of
from meshd.mesh.record import Assignment, HeldModel, NodeRecord, Offer, Stage
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.own_record import Moving, Self, offer_record, own_record
from meshd.planner.claims import Claims, Own, next_claims
from meshd.planner.hosting import Hosting, intents
from meshd.planner.lending import leases
from meshd.planner.lent import Lent
from meshd.planner.mesh_plan import MeshPlan
from meshd.planner.place import budgets_of, offer
from meshd.planner.plan import Decision, Strategy
from meshd.planner.replicas import place_replicas
from meshd.planner.view import NodeView
from meshd.planner.wishes import Wanted, wanted
from meshd.quality import quality_of
from meshd.shard_share import as_the_mesh_asks, other_shards, with_shards
from meshd.shard_wants import Shards, ShardWant
from meshd.split_room import rooms_beside
from meshd.split_share import (
    Splits,
    hostings,
    lending,
    taken_up,
    terms_of,
    that_begin,
    that_go_on,
    with_lent,
    with_pipelines,
    without_lost,
)

OFFERS_MAX = 64
# While an engine may still run of it, a split's members are asked to go on.
_ENGAGES = (Stage.LOADING, Stage.READY, Stage.DRAINING)
# As the configuration's schema has them.
_CONTEXT_LEAST, _CONTEXT_MOST = 64, 16_777_216
_SLOTS_MOST = 256


@dataclass(frozen=True, slots=True)
class Around:
    """The mesh as this node knows it when a pass begins.

    :ivar demand: requests a minute over the whole mesh, by model.
    :ivar calm_s: since a member last came, went or was missed.
    :ivar own: this node's assignments; of those whose engine runs, also how it is.
    :ivar terms: the highest term that this node has used, by model.
    :ivar drained: models being given up whose last request has ended.
    :ivar before: the record that was published last, None before the first.
    :ivar window_s: longest that a message between nodes takes.
    :ivar early: others may be there that this node has not heard of yet, so it starts nothing.
    :ivar load_times: of this node's loads so far.
    :ivar cut: this node is drained, and its answers have no more time.
    :ivar splits: what this node lends, and how its splits are.
    :ivar shards: its rankings of experts and its shards.
    """

    self: Self
    view: MeshView
    demand: Mapping[str, float] = field(default_factory=dict)
    calm_s: float = 0.0
    own: tuple[Own, ...] = ()
    terms: Mapping[str, int] = field(default_factory=dict)
    drained: frozenset[str] = frozenset()
    moving: Moving = field(default_factory=Moving)
    before: NodeRecord | None = None
    window_s: float = 0.4
    early: bool = False
    load_times: LoadTimes = field(default_factory=LoadTimes)
    cut: bool = False
    splits: Splits = field(default_factory=Splits)
    shards: Shards = field(default_factory=Shards)


@dataclass(frozen=True, slots=True)
class Share:
    """:ivar config: this node's own with the models that it runs, most important first.

    :ivar view: with this node's own record as it is now, `record`.
    :ivar again_s: when to look again although nothing was heard, None for not before an event.
    :ivar others: models that this node could serve and does not.
    :ivar kept: models that nobody is known to name, whose engines go on for now: nobody was heard
        of yet, or somebody still reads an answer.
    :ivar early: others may be there that this node has not heard of yet.
    :ivar pipelines: decisions of the splits that this node hosts, by model; ``hostings`` how far
        they are.
    :ivar sharded: likewise of the models that it serves from expert shards; ``shard_wants`` what
        is to be made for such.
    :ivar lent: what it lends to others' splits.
    :ivar could: how this node would serve every model that it could, and what else it considered.
    """

    config: Config
    record: NodeRecord
    view: MeshView
    plan: MeshPlan
    again_s: float | None = None
    kept: frozenset[str] = frozenset()
    early: bool = False
    others: tuple[ModelSettings, ...] = ()
    pipelines: Mapping[str, Decision] = field(default_factory=dict)
    hostings: Mapping[str, Hosting] = field(default_factory=dict)
    lent: tuple[Lent, ...] = ()
    could: tuple[Decision, ...] = ()
    sharded: Mapping[str, Decision] = field(default_factory=dict)
    shard_wants: tuple[ShardWant, ...] = ()


def share(
    config: Config,
    node: NodeView,
    build: EngineBuild | None,
    held: tuple[HeldModel, ...],
    around: Around,
) -> Share:
    """Work out what this node runs, and what it says of itself."""
    if config.node.role is Role.STANDBY:
        # What it may run is for the mesh's plan to say; its own planner only says whether it can.
        local = replace(config, node=replace(config.node, role=Role.AUTO))
    else:
        local = config
    asked = wanted(around.view)
    settings = settings_of(config, asked)
    splits = around.splits
    terms = terms_of(around.terms, node, around.view)
    around = replace(around, terms=terms, own=taken_up(around.own, node))
    node = with_lent(node, splits.lent, around.view)
    lends = lending(
        node,
        config,
        build,
        around.view,
        [one.assignment for one in around.own],
        splits.lent,
        early=around.early,
        draining=around.moving.draining,
    )
    node = with_lent(node, lends.lent, around.view)
    rooms = rooms_beside(node, config, [one.assignment for one in around.own])
    node = that_go_on(
        node, around.view, splits, settings, rooms, config.mesh.split_ports, early=around.early
    )
    decisions = with_pipelines(
        _offers(node, local, settings),
        node,
        local,
        settings,
        build,
        around.view,
        splits,
        around.terms,
        rooms,
    )
    parts = with_shards(
        decisions,
        node,
        local,
        as_the_mesh_asks(settings, asked),
        around.view,
        around.shards,
        calm_s=around.calm_s,
        early=around.early,
        draining=around.moving.draining,
    )
    decisions = parts.decisions
    offers = tuple(
        offer_record(decision, node.candidate(decision.model), node, limit=config.node.limit)
        for decision in decisions
    )
    budgets = budgets_of(node, config)
    fingerprints = {offer.model: offer.fingerprint for offer in offers}
    answers = leases(lends, splits.seeds, splits.guards)
    pipelines = {one.model: one for one in decisions if one.strategy is Strategy.PIPELINE}
    sharded = {one.model: one for one in decisions if one.shard is not None}
    begins = that_begin(pipelines.values(), node) | other_shards(decisions, node)

    def record(assignments: tuple[Assignment, ...]) -> NodeRecord:
        hosts = tuple(
            pipelines[one.model]
            for one in assignments
            if one.model in pipelines and one.stage in _ENGAGES
        )
        own = own_record(
            around.self,
            config,
            node,
            build,
            held,
            offers,
            assignments,
            around.moving,
            budgets,
            around.before,
        )
        return replace(
            own, intents=intents(hosts, fingerprints), leases=answers, shards=parts.records
        )

    # Whose file is another one now is started anew with it in this pass, so that is what it has.
    now = tuple(
        _as_offered(one.assignment, offers, pipelines, sharded)
        if one.assignment.stage in (Stage.LOADING, Stage.READY)
        else one.assignment
        for one in around.own
    )
    view = with_own(around.view, record(now))
    plan = place_replicas(view, around.demand)
    claims = _claims(plan, config, around)
    claimed = tuple(
        _with_load_time(_anew(_as_offered(one, offers, pipelines, sharded), begins), node, around)
        for one in without_lost(claims.assignments, offers)
    )
    fresh = record(claimed)
    runs = [one.model for one in claimed if _runs(one, plan, around)]
    local = replace(local, models=tuple(settings[one] for one in runs if one in settings))
    kept = frozenset(runs) - settings.keys()
    others = tuple(settings[one.model] for one in decisions if one.served and one.model not in runs)
    seen = with_own(view, fresh)
    hosted = {one: pipelines[one] for one in runs if one in pipelines}
    return Share(
        config=local,
        record=fresh,
        view=seen,
        plan=plan,
        again_s=_sooner(claims.again_s, splits.troubles.held.values()),
        kept=kept,
        early=around.early,
        others=others,
        pipelines=hosted,
        hostings=hostings(hosted.values(), seen, splits),
        lent=lends.lent,
        could=decisions,
        sharded={one: sharded[one] for one in runs if one in sharded},
        shard_wants=parts.wants,
    )


def settings_of(config: Config, asked: tuple[Wanted, ...]) -> dict[str, ModelSettings]:
    """Every model that anybody names: as this node's own configuration has it, else the mesh's."""
    own = {model.name: model for model in config.models}
    others = {
        one.model: ModelSettings(
            name=one.model,
            # Not the other's path: what runs here must not restart because somebody spells it
            # differently.
            source=f"{one.model} (named by another node)",
            # What no configuration of ours could say is nothing to plan with.
            context=one.context if _CONTEXT_LEAST <= one.context <= _CONTEXT_MOST else "auto",
            slots=one.slots if 1 <= one.slots <= _SLOTS_MOST else "auto",
            replicas=Replicas(one.least, "auto" if one.most is None else one.most),
            aliases=one.aliases,
            split=Split.NEVER if one.split == Split.NEVER else Split.AUTO,
            quality=quality_of(one.quality),
            nodes=tuple(sorted(one.nodes)) or "auto",
        )
        for one in asked
        if one.model not in own
    }
    return {**own, **others}


def with_own(view: MeshView, record: NodeRecord) -> MeshView:
    """The view with this node's own record as it is now, which it knows before anybody else."""
    member = view.member(view.me)
    if member is not None and member.record == record:
        return view
    incarnation = member.incarnation if member else 0
    own = MemberView(view.me, incarnation, Status.ALIVE, record)
    rest = [one for one in view.members if one.id != view.me]
    members = tuple(sorted((*rest, own), key=lambda one: one.id))
    return replace(view, members=members, digest=hash((view.digest, record)))


def _offers(
    node: NodeView, config: Config, settings: Mapping[str, ModelSettings]
) -> tuple[Decision, ...]:
    """At most `OFFERS_MAX`: a layout is searched for each, and what others wish has no bound."""
    complete = replace(config, models=tuple(settings.values()))
    # A file that is not here is no offer, unless our own configuration names it: then it is news.
    own = {model.name for model in config.models}
    here = (
        model
        for model in settings.values()
        if model.name in own
        or ((found := node.candidate(model.name)) is not None and found.facts is not None)
    )
    return tuple(offer(node, complete, model) for model in islice(here, OFFERS_MAX))


def _claims(plan: MeshPlan, config: Config, around: Around) -> Claims:
    claims = next_claims(
        plan,
        around.self.id,
        around.own,
        calm_s=around.calm_s,
        terms=around.terms,
        window_s=around.window_s,
        dwell_s=config.demand.dwell_s,
        early=around.early,
    )
    if around.moving.draining:
        claims = replace(claims, assignments=_left_to_do(claims.assignments, around))
    return claims


def _left_to_do(assignments: tuple[Assignment, ...], around: Around) -> tuple[Assignment, ...]:
    """What a node that is drained goes on with: no engine that fails, and at last none at all."""
    left = (one for one in assignments if one.stage not in (Stage.FAILED, Stage.CLAIMED))
    if not around.cut:
        return tuple(left)
    text = "this node is drained, and its time is over"
    return tuple(replace(one, stage=Stage.DRAINING, progress=0.0, detail=text) for one in left)


def _as_offered(
    assignment: Assignment,
    offers: tuple[Offer, ...],
    pipelines: Mapping[str, Decision],
    sharded: Mapping[str, Decision],
) -> Assignment:
    """With the shape that it has or will have here, rather than what the mesh asked for."""
    found = next((one for one in offers if one.model == assignment.model), None)
    if found is None or not found.memory:
        return assignment
    claimed = assignment.stage is Stage.CLAIMED
    memory = assignment.memory if claimed else found.memory
    # An arrangement begins with the engine: until then its term is used by none.
    pipeline = None if claimed else pipelines.get(assignment.model)
    shard = sharded[assignment.model].shard if assignment.model in sharded else None
    return replace(
        assignment,
        context=found.context,
        slots=found.slots,
        memory=memory or found.memory,
        parts=found.parts,
        term=max(assignment.term, pipeline.term) if pipeline else assignment.term,
        fingerprint=found.fingerprint or assignment.fingerprint,
        shard=shard.key if shard else "",
        measured=found.measured,
        experts=shard.experts if shard else 0,
        experts_all=shard.experts_all if shard else 0,
    )


def _anew(assignment: Assignment, begins: frozenset[str]) -> Assignment:
    """What answered until now does not any more: nobody should send it anything."""
    if assignment.stage is not Stage.READY or assignment.model not in begins:
        return assignment
    return replace(assignment, stage=Stage.LOADING, progress=0.0)


def _with_load_time(assignment: Assignment, node: NodeView, around: Around) -> Assignment:
    """Said once a load, and no more when it is done."""
    if assignment.stage is not Stage.LOADING:
        return replace(assignment, load_s=0.0) if assignment.load_s else assignment
    candidate = node.candidate(assignment.model)
    if assignment.load_s or candidate is None or candidate.facts is None:
        return assignment
    expected_s = around.load_times.predicted_s(content_of(candidate), candidate.facts.file_bytes)
    return replace(assignment, load_s=round(expected_s, 1))


def _sooner(again_s: float | None, others: Iterable[float]) -> float | None:
    return min((one for one in (again_s, *others) if one is not None), default=None)


def _runs(assignment: Assignment, plan: MeshPlan, around: Around) -> bool:
    match assignment.stage:
        case Stage.CLAIMED:
            return False
        case Stage.DRAINING:
            return assignment.model not in around.drained
        case Stage.FAILED:
            # Its engine is tried again and again, until another node has taken the model over.
            placement = plan.placement(assignment.model)
            return placement is None or not any(
                replica.stage in (Stage.LOADING, Stage.READY)
                for replica in placement.replicas
                if replica.node != around.self.id
            )
    return True
