"""How this node would serve a model together with others: an offer to the mesh, or why not. Pure.

What a model already runs on is kept as long as everybody in it may stay. Everything else is the
fastest group by `group.Search`, first in memory that no other model holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from meshd.config.settings import Config, ModelSettings, Split
from meshd.engine.build import EngineBuild
from meshd.mesh.record import Assignment, EngineRecord, NodeRecord, Part, Stage
from meshd.mesh.view import MemberView, MeshView
from meshd.models.facts import GgufFacts
from meshd.planner.fit import Shape, shapes
from meshd.planner.group import LENDERS_MOST, Group, Host, Lending, Offered, Search
from meshd.planner.layout import RAM
from meshd.planner.near import (
    Near,
    Peer,
    bar,
    near,
    places_of,
    rtt_between,
    taken_by_others,
    those_barred,
)
from meshd.planner.pace import (
    Pace,
    device_paces,
    pace_of,
    predict_solo,
    rounded,
    ubatch_s,
)
from meshd.planner.place import budgets_of
from meshd.planner.placement import HOST
from meshd.planner.plan import (
    Code,
    Decision,
    DeviceUse,
    Layout,
    Reason,
    Strategy,
)
from meshd.planner.rivals import of_group, others_than, why_nobody
from meshd.planner.view import NodeView

_RUNS = (Stage.CLAIMED, Stage.LOADING, Stage.READY)
_KEPT_MOST = 512


@dataclass(frozen=True, slots=True)
class _Question:
    """All that an answer depends on. Equal questions have equal answers."""

    facts: GgufFacts
    model: ModelSettings
    host: Host
    lenders: tuple[Lending, ...]
    solo: Decision


_answers: dict[tuple[str, str, bool], tuple[_Question, Decision | None]] = {}


def pipeline_offer(
    node: NodeView,
    config: Config,
    model: ModelSettings,
    view: MeshView,
    me: str,
    *,
    build: EngineBuild | None,
    excluded: Mapping[str, str],
    solo: Decision,
) -> Decision:
    """The faster of serving the model alone and together with others, with the speed predicted.

    :param view: with this node's own record, whose devices and round trips count.
    :param excluded: nodes that may be no members for a while, by id, and why.
    :param solo: how this node serves it otherwise (`place.offer`); a pipeline that runs already is
        kept while its members may stay.
    """
    candidate = node.candidate(model.name)
    if candidate is None or candidate.facts is None:
        return solo
    facts = candidate.facts
    own = view.member(me)
    record = own.record if own is not None else NodeRecord(me, name=node.name)
    engine = _engine(build)
    paces = _own_paces(node, record)
    solo = with_speed(solo, node, view)
    if not _worth_a_search(solo, facts, model):
        return solo
    if engine is None or engine.rpc_protocol is None or len(view.members) < 2:
        return solo
    asking = replace(record, engine=engine)
    if solo.strategy is Strategy.PIPELINE:
        if _may_stay(solo.parts, view, asking, me, excluded):
            return solo
        solo = Decision(model.name, Strategy.WAIT, me, asked=solo.asked)
    around = near(view, me, engine)
    whole = _host(node, config, paces, record, me, ())
    idle = _host(node, config, paces, record, me, _others(around, model.name))
    running = record.assignment(model.name)
    if running is not None and running.parts and running.stage in _RUNS:
        standing = _standing(running, facts, whole, view, asking, excluded)
        if standing is not None:
            reason = Reason(Code.KEPT, "is split like this already, and all of it may stay")
            return _decision(solo, facts, whole, standing, view, (reason,))
    peers, barred = _sorted(around, model, me, excluded)
    size_bytes = facts.file_bytes
    answer = None
    question = _Question(facts, model, whole, (), solo)
    for host, free in ((idle, True), (whole, False)):
        lenders = tuple(
            _lending(peer, model.name, idle=free)
            for peer in _promising(around, peers, size_bytes, idle=free)
        )
        question = _Question(facts, model, host, lenders, solo)
        answer = _remembered(question, view, me, idle=free)
        if answer is not None:
            break
    if answer is None:
        return _nobody(question, barred, around)
    shown = around.shown if barred is around.barred else those_barred(barred)
    answer = replace(answer, considered=(*answer.considered, *shown))
    faster = max(
        (
            one.tokens_s
            for one in around.solos.get(model.name, ())
            if one.fingerprint == candidate.fingerprint
        ),
        default=0.0,
    )
    if answer.strategy is Strategy.PIPELINE and faster >= answer.tokens_s:
        text = f"another node serves it alone at {faster:g} tokens/s"
        reason = Reason(Code.SOLO_FASTER, text)
        answer = replace(answer, reasons=(*answer.reasons, reason))
    return answer


def with_speed(decision: Decision, node: NodeView, view: MeshView) -> Decision:
    """A model that this node serves alone, with the speed predicted; any other as it is.

    :param view: as this node sees it, with its own record.
    """
    candidate = node.candidate(decision.model)
    if not decision.served or decision.strategy is Strategy.PIPELINE:
        return decision
    if candidate is None or candidate.facts is None:
        return decision
    own = view.member(view.me)
    paces = _own_paces(node, own.record if own is not None else NodeRecord(view.me))
    unified = tuple(gpu.id for gpu in node.gpus if gpu.unified)
    tokens_s = predict_solo(
        candidate.facts, decision.layout, decision.context, paces, unified=unified
    )
    return replace(decision, tokens_s=tokens_s)


def _worth_a_search(solo: Decision, facts: GgufFacts, model: ModelSettings) -> bool:
    """Only memory is something that others can help out with, and nothing beats one node's GPUs."""
    if model.split is Split.NEVER or facts.pooling is not None:
        return False
    if solo.strategy is Strategy.WAIT:
        return any(reason.code is Code.NO_MEMORY for reason in solo.blockers)
    return solo.strategy is not Strategy.SOLO_GPU


def _remembered(question: _Question, view: MeshView, me: str, *, idle: bool) -> Decision | None:
    key = (me, question.model.name, idle)
    kept = _answers.get(key)
    if kept is not None and kept[0] == question:
        return kept[1]
    answer = _answer(question, view)
    if len(_answers) >= _KEPT_MOST:
        _answers.clear()
    _answers[key] = (question, answer)
    return answer


def _answer(question: _Question, view: MeshView) -> Decision | None:
    """The best group, or the model alone where that is as fast; None where no group fits."""
    facts, solo, host, lenders = question.facts, question.solo, question.host, question.lenders
    tried = tuple(shapes(facts, question.model, modest=True))
    for shape in tried if lenders else ():
        search = Search(facts, host, shape)
        group = search.best(lenders)
        if group is None:
            continue
        tokens_s = rounded(1 / group.token_s)
        if solo.served and solo.tokens_s >= tokens_s:
            text = f"alone it makes {solo.tokens_s:g} tokens/s, split {tokens_s:g}"
            refused = of_group(host.node, group, Reason(Code.SOLO_FASTER, text))
            return replace(solo, considered=(refused,))
        reasons = _reasons(question, group, tried)
        made = _decision(solo, facts, host, group, view, reasons)
        return replace(made, considered=others_than(group, search, host.node, lenders))
    return None


def _nobody(
    question: _Question, barred: tuple[tuple[str, str, Code, str], ...], around: Near
) -> Decision:
    solo = question.solo
    shown = around.shown if barred is around.barred else those_barred(barred)
    if solo.served:
        return replace(solo, considered=shown)
    least = tuple(shapes(question.facts, question.model, modest=True))[-1]
    blockers, next_step = why_nobody(question.facts, least, question.host, question.lenders, barred)
    return replace(
        solo,
        blockers=(*blockers, *solo.blockers),
        next_step=next_step or solo.next_step,
        considered=shown,
    )


def _reasons(question: _Question, group: Group, tried: tuple[Shape, ...]) -> tuple[Reason, ...]:
    names = {one.node: one.name for one in question.lenders}
    members = tuple(
        dict.fromkeys(one.node for one in group.pieces if one.node != question.host.node)
    )
    who = ", ".join(names.get(node, node) for node in members)
    tokens_s = rounded(1 / group.token_s)
    reasons = [Reason(Code.CHOSEN, f"too large for this node alone: split with {who}")]
    if question.solo.served:
        text = f"split with {who} it makes {tokens_s:g} tokens/s, alone {question.solo.tokens_s:g}"
        reasons = [Reason(Code.CHOSEN, text)]
    unknown = [
        names.get(one.node, one.node)
        for one in question.lenders
        if one.node in members and not all(place.pace.measured for place in one.places)
    ]
    if not all(pace.measured for pace in question.host.paces.values()):
        unknown.append("this node")
    if unknown:
        text = f"speed not measured yet on {', '.join(unknown)}: a cautious guess is used"
        reasons.append(Reason(Code.UNMEASURED, text))
    if (group.shape.context, group.shape.slots) != (tried[0].context, tried[0].slots):
        shape, first = group.shape, tried[0]
        text = (
            f"context {shape.context} and {shape.slots} slots rather than {first.context} and "
            f"{first.slots}, so that it fits"
        )
        reasons.append(Reason(Code.TRIMMED, text))
    return tuple(reasons)


def _decision(
    solo: Decision,
    facts: GgufFacts,
    host: Host,
    group: Group,
    view: MeshView,
    reasons: tuple[Reason, ...],
) -> Decision:
    parts = tuple(
        Part(one.node, one.device, one.layers, one.memory.engine_bytes) for one in group.pieces
    )
    own = [one for one in group.pieces if one.node == host.node and one.device != RAM]
    counts = [one.layers for one in own]
    if counts:
        counts[-1] += 1
    memory = [
        DeviceUse(
            one.device, one.memory.weights_bytes, one.memory.kv_bytes, one.memory.compute_bytes
        )
        for one in own
    ]
    ram = group.host_memory
    memory.append(DeviceUse(RAM, ram.weights_bytes, ram.kv_bytes, ram.compute_bytes))
    nodes = {part.node for part in parts}
    records = {one.id: one.record for one in view.members if one.id in nodes}
    lent = tuple(part for part in parts if part.node != host.node)
    first = sum(part.layers for part in parts[: parts.index(lent[0])])
    return replace(
        solo,
        strategy=Strategy.PIPELINE,
        node=host.node,
        context=group.shape.context,
        slots=group.shape.slots,
        layout=Layout(tuple(one.device for one in own), tuple(counts)),
        memory=tuple(memory),
        reasons=reasons,
        blockers=(),
        next_step="",
        parts=parts,
        tokens_s=rounded(1 / group.token_s),
        ubatch_s=round(
            ubatch_s(
                facts, lent, records, host.node, context=group.shape.context, first_layer=first
            ),
            3,
        ),
    )


def _host(
    node: NodeView,
    config: Config,
    paces: Mapping[str, Pace],
    record: NodeRecord,
    me: str,
    less: tuple[tuple[str, int], ...],
) -> Host:
    # A split's engine keeps no old prompts: its members would send all of them over the network.
    budgets = budgets_of(node, config)
    for device, size_bytes in less:
        budgets = budgets.less(device, size_bytes)
    unified = tuple(gpu.id for gpu in node.gpus if gpu.unified)
    plannable = {device.id: device.plannable_bytes for device in record.devices}
    held = dict(less)
    # What shares the RAM is counted once, so one of them is enough.
    usable = [gpu for gpu in node.gpus if not gpu.unified or gpu.id == unified[0]]
    known = {
        RAM: paces.get(RAM) or pace_of(None, gpu=False),
        **{
            gpu.id: paces.get(gpu.id) or pace_of(None, gpu=True, unified=gpu.unified)
            for gpu in usable
        },
    }
    gpus = sorted(
        known.keys() - {RAM},
        key=lambda gpu: (gpu in unified, -known[gpu].bytes_s, -budgets.free(gpu), gpu),
    )
    return Host(
        node=me,
        rooms={
            device: _steady(budgets.free(device), plannable.get(device, 0) - held.get(device, 0))
            for device in known
            if device not in unified
        },
        gpus=tuple(gpus),
        paces=known,
        unified=unified[:1],
        network_bytes_s=record.network_bytes_s,
    )


def _steady(free_bytes: int, told_bytes: int) -> int:
    """What our record tells the others, where it is about what is free and no more: figures that
    move with every look would have everything searched anew.
    """
    if 0 < told_bytes <= free_bytes <= told_bytes * 1.1:
        return told_bytes
    return max(0, free_bytes)


def _own_paces(node: NodeView, record: NodeRecord) -> dict[str, Pace]:
    """As measured now, else as our record still says."""
    paces = {device: pace for device, pace in device_paces(record).items() if pace.measured}
    for one in node.speeds:
        if one.bandwidth_bytes_s > 0:
            paces[one.device] = Pace(float(one.bandwidth_bytes_s), float(one.flops_s))
    return paces


def _others(around: Near, model: str) -> tuple[tuple[str, int], ...]:
    """What other models hold of this node's memory, by pool."""
    pools = sorted({one.pool for one in around.own_taken})
    return tuple((pool, taken_by_others(around.own_taken, pool, model)) for pool in pools)


def _sorted(
    around: Near, model: ModelSettings, me: str, excluded: Mapping[str, str]
) -> tuple[tuple[Peer, ...], tuple[tuple[str, str, Code, str], ...]]:
    """Those that may take part in this model's split, and those that may not."""
    pinned = around.pinned.get(model.name)
    if not excluded and pinned is None:
        return around.peers, around.barred
    peers, barred = [], list(around.barred)
    for peer in around.peers:
        if peer.id in excluded:
            barred.append((peer.id, peer.name, Code.FAILED_AS_MEMBER, excluded[peer.id]))
        elif pinned is not None and not {peer.id, peer.name} & pinned:
            text = f"models[].nodes names {', '.join(sorted(pinned))}"
            barred.append((peer.id, peer.name, Code.NOT_PINNED, text))
        else:
            peers.append(peer)
    return tuple(peers), tuple(barred)


def _promising(
    around: Near, peers: tuple[Peer, ...], size_bytes: int, *, idle: bool
) -> tuple[Peer, ...]:
    """The few that a search is made among: the fastest for what they hold; the roomiest where all
    of those together have too little.
    """
    ranked = around.ranked(size_bytes, idle=idle)
    if peers is not around.peers:
        allowed = {peer.id for peer in peers}
        ranked = tuple(peer for peer in ranked if peer.id in allowed)
    if len(ranked) <= LENDERS_MOST:
        return ranked
    best = ranked[:LENDERS_MOST]

    def room(peer: Peer) -> int:
        return sum(peer.room(place, "", idle=idle) for place in peer.places)

    if sum(map(room, best)) >= size_bytes:
        return best
    roomy = sorted(ranked, key=lambda peer: (-room(peer), peer.id))
    return tuple(roomy[:LENDERS_MOST])


def _lending(peer: Peer, model: str, *, idle: bool) -> Lending:
    return Lending(
        peer.id,
        peer.name,
        tuple(
            Offered(
                peer.id,
                place.device,
                max(0, peer.room(place, model, idle=idle)),
                place.pace,
                peer.rtt_s,
                peer.network_bytes_s,
            )
            for place in peer.places
        ),
        peer.penalty(model),
    )


def _may_stay(
    parts: tuple[Part, ...],
    view: MeshView,
    asking: NodeRecord,
    me: str,
    excluded: Mapping[str, str],
) -> bool:
    members = {part.node for part in parts} - {me}
    for node in members:
        member = view.member(node)
        if member is None or node in excluded:
            return False
        if bar(member, asking, rtt_between(asking, member.record), inside=True) is not None:
            return False
    return bool(members)


def _standing(
    running: Assignment,
    facts: GgufFacts,
    host: Host,
    view: MeshView,
    asking: NodeRecord,
    excluded: Mapping[str, str],
) -> Group | None:
    """What this node claimed or runs, if all of it may stay as it is."""
    parts = running.parts
    if not running.context or not _may_stay(parts, view, asking, host.node, excluded):
        return None
    lenders = []
    rooms: dict[tuple[str, str], int] = {}
    for node in dict.fromkeys(part.node for part in parts if part.node != host.node):
        member = view.member(node)
        assert member is not None
        rtt = rtt_between(asking, member.record) or 0.0
        lenders.append(_lending(_as_peer(member, rtt), running.model, idle=False))
        rooms.update({(node, part.device): part.size_bytes for part in parts if part.node == node})
    search = Search(facts, host, Shape(running.context, max(1, running.slots)))
    seats = search.seats(lenders)
    if any((part.node, part.device) not in seats for part in parts):
        return None
    own = [part.device for part in parts if part.node == host.node and part.device != RAM]
    pieces = [(part.node, part.device, part.layers) for part in parts]
    return search.group(pieces, seats, own[-1] if own else HOST, rooms)


def _as_peer(member: MemberView, rtt_ms: float) -> Peer:
    record = member.record
    return Peer(
        record.id,
        record.name or record.id,
        rtt_ms / 1000,
        record.network_bytes_s,
        places_of(record),
    )


def _engine(build: EngineBuild | None) -> EngineRecord | None:
    if build is None:
        return None
    return EngineRecord(
        build.version, build.package, build.ggml, build.build, build.rpc_protocol, build.backends
    )
