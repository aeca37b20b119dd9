"""What the engines of a plan have to do, so that their progress can be judged. Pure."""

from __future__ import annotations

from dataclasses import replace

from meshd.load_times import LoadTimes, content_of
from meshd.models.facts import GgufFacts
from meshd.pipeline import Proposal
from meshd.planner.layout import RAM
from meshd.planner.plan import Decision
from meshd.planner.view import NodeView
from meshd.progress import Work
from meshd.units.spec import EngineKind

# llama-server's own, where the plan leaves it.
_BATCH = 2048
_BATCH_FLAG = "--batch-size"
_MICRO_BATCH_FLAG = "--ubatch-size"


def works(proposal: Proposal, times: LoadTimes) -> dict[str, Work]:
    """By unit. :param times: of this node's loads."""
    decisions = {decision.model: decision for decision in proposal.plan.decisions}
    found = {}
    for spec in proposal.specs:
        candidate = proposal.node.candidate(spec.model)
        decision = decisions.get(spec.model)
        if spec.kind is not EngineKind.LLAMA or decision is None:
            continue
        if candidate is None or candidate.facts is None:
            continue
        load_s = times.predicted_s(content_of(candidate), spec.load_bytes)
        found[spec.unit] = work_of(
            candidate.facts, decision, proposal.node, spec.argv, load_s=load_s
        )
    return found


def work_of(
    facts: GgufFacts, decision: Decision, node: NodeView, argv: tuple[str, ...], *, load_s: float
) -> Work:
    """:param argv: of the engine. :param load_s: how long it takes to start."""
    batch = _number(argv, _BATCH_FLAG, _BATCH)
    work = Work(
        token_flop=2.0 * facts.parameters,
        depth_flop=sum(
            2.0 * layer.heads * (facts.key_length + facts.value_length)
            for layer in facts.layers
            if layer.kv_heads
        ),
        batch=batch,
        weight_bytes=facts.file_bytes,
        load_s=load_s,
    )
    micro_batches = batch / _number(argv, _MICRO_BATCH_FLAG, batch)
    return replace(work, batch_s=_batch_s(work, decision, node, micro_batches))


def _batch_s(work: Work, decision: Decision, node: NodeView, micro_batches: float) -> float:
    if decision.ubatch_s:
        return decision.ubatch_s * micro_batches
    devices = {use.device for use in decision.memory if use.weights_bytes} or {RAM}
    speeds = [node.speed(device) for device in devices]
    slowest = min((speed.flops_s if speed else 0 for speed in speeds), default=0)
    return work.flop(work.batch, 0) / slowest if slowest else 0.0


def _number(argv: tuple[str, ...], flag: str, default: int) -> int:
    try:
        return max(1, int(argv[argv.index(flag) + 1]))
    except (ValueError, IndexError):
        return default
