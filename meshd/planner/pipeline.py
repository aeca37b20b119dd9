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
from meshd.mesh.view import MeshView
from meshd.models.facts import GgufFacts
from meshd.planner.fit import Shape, shapes
from meshd.planner.group import Group, Host, Lending, Search
from meshd.planner.layout import RAM
from meshd.planner.lenders import (
    allowed,
    as_peer,
    held_by_others,
    host_of,
    lending_of,
    own_paces,
    promising,
)
from meshd.planner.near import Near, bar, near, rtt_between, those_barred
from meshd.planner.pace import predict_solo, rounded
from meshd.planner.placement import HOST
from meshd.planner.plan import Code, Considered, Decision, Reason, Strategy
from meshd.planner.rivals import of_group, others_than, why_nobody
from meshd.planner.split_decision import reasons, split_decision
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
    paces = own_paces(node, record)
    solo = with_speed(solo, node, view)
    if not _worth_a_search(solo, facts, model):
        return _never(solo, model)
    if engine is None or engine.rpc_protocol is None or len(view.members) < 2:
        return solo
    asking = replace(record, engine=engine)
    if solo.strategy is Strategy.PIPELINE:
        if _may_stay(solo.parts, view, asking, me, excluded):
            return solo
        solo = Decision(model.name, Strategy.WAIT, me, asked=solo.asked)
    around = near(view, me, engine)
    whole = host_of(node, config, paces, record, me, ())
    idle = host_of(node, config, paces, record, me, held_by_others(around, model.name))
    running = record.assignment(model.name)
    if running is not None and running.parts and running.stage in _RUNS:
        standing = _standing(running, facts, whole, view, asking, excluded)
        if standing is not None:
            reason = Reason(Code.KEPT, "is split like this already, and all of it may stay")
            return split_decision(solo, facts, whole, standing, view, (reason,))
    peers, barred = allowed(around, model, me, excluded)
    size_bytes = facts.file_bytes
    answer = None
    question = _Question(facts, model, whole, (), solo)
    for host, free in ((idle, True), (whole, False)):
        lenders = tuple(
            lending_of(peer, model.name, idle=free)
            for peer in promising(around, peers, size_bytes, idle=free)
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
            if one.fingerprint == candidate.fingerprint and one.node != me
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
    paces = own_paces(node, own.record if own is not None else NodeRecord(view.me))
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


def _never(solo: Decision, model: ModelSettings) -> Decision:
    """With the reason, where others may not help out with memory."""
    short = any(reason.code is Code.NO_MEMORY for reason in solo.blockers)
    if model.split is not Split.NEVER or not short:
        return solo
    forbidden = Reason(Code.NEVER_SPLIT, "models[].split is never: one node serves it or none")
    return replace(solo, blockers=(forbidden, *solo.blockers))


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
            return replace(solo, considered=(refused, *solo.considered))
        why = reasons(group, tried[0], host, lenders, solo)
        made = split_decision(solo, facts, host, group, view, why)
        others = others_than(group, search, host.node, lenders)
        return replace(made, considered=(*others, *_alone(solo)))
    return None


def _alone(solo: Decision) -> tuple[Considered, ...]:
    """How this node would serve it by itself."""
    if not solo.served:
        return solo.considered
    reason = Reason(Code.SLOWER, solo.reasons[0].text if solo.reasons else "alone")
    this = Considered((solo.node,), solo.tokens_s, reason, strategy=solo.strategy)
    return (this, *solo.considered)


def _nobody(
    question: _Question, barred: tuple[tuple[str, str, Code, str], ...], around: Near
) -> Decision:
    solo = question.solo
    shown = around.shown if barred is around.barred else those_barred(barred)
    if solo.served:
        return replace(solo, considered=(*solo.considered, *shown))
    least = tuple(shapes(question.facts, question.model, modest=True))[-1]
    blockers, next_step = why_nobody(question.facts, least, question.host, question.lenders, barred)
    return replace(
        solo,
        blockers=(*blockers, *solo.blockers),
        next_step=next_step or solo.next_step,
        considered=(*solo.considered, *shown),
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
        lenders.append(lending_of(as_peer(member, rtt), running.model, idle=False))
        rooms.update({(node, part.device): part.size_bytes for part in parts if part.node == node})
    search = Search(facts, host, Shape(running.context, max(1, running.slots)))
    seats = search.seats(lenders)
    if any((part.node, part.device) not in seats for part in parts):
        return None
    own = [part.device for part in parts if part.node == host.node and part.device != RAM]
    pieces = [(part.node, part.device, part.layers) for part in parts]
    return search.group(pieces, seats, own[-1] if own else HOST, rooms)


def _engine(build: EngineBuild | None) -> EngineRecord | None:
    if build is None:
        return None
    return EngineRecord(
        build.version, build.package, build.ggml, build.build, build.rpc_protocol, build.backends
    )
