"""The faster of serving a model exactly and from a shard that keeps the quality asked for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from meshd.config.settings import ModelSettings
from meshd.experts.wish import Shard
from meshd.models.facts import GgufFacts
from meshd.node.inventory import Gpu
from meshd.planner.fit import Shape, shape_memory, shapes
from meshd.planner.layout import Budgets, whole_layouts
from meshd.planner.pace import Pace, predict_solo
from meshd.planner.plan import (
    Code,
    Considered,
    Decision,
    Layout,
    Reason,
    ShardUse,
    Strategy,
)
from meshd.planner.shard_facts import shard_facts
from meshd.planner.shard_group import Exact
from meshd.quality import Budget, shortfalls

# What is predicted to be this much faster is worth the work, and what it loses of the model.
WORTH = 1.1
# What serves already stays until the other way is as much faster.
STAYS = 1 / 1.25


@dataclass(frozen=True, slots=True)
class Fitted:
    """A shard of so many experts a layer on this node's devices, and its predicted speed."""

    experts: int
    layout: Layout
    shape: Shape
    tokens_s: float


def fitted(
    facts: GgufFacts,
    experts: int,
    model: ModelSettings,
    gpus: tuple[Gpu, ...],
    budgets: Budgets,
    paces: Mapping[str, Pace],
) -> Fitted | None:
    """Whole on this node's GPUs, in RAM where it has none; None where it does not fit so.

    A good context comes before a shorter one, as for whole models.

    :param budgets: as `place.budgets_for` this model.
    """
    part = shard_facts(facts, experts)
    unified = tuple(gpu.id for gpu in gpus if gpu.unified)
    for shape in shapes(part, model, modest=True):
        for layout in whole_layouts(part, gpus, budgets) if gpus else (Layout(),):
            memory = shape_memory(part, layout, shape)
            if budgets.hold(memory):
                speed = predict_solo(part, layout, shape.context, paces, unified=unified)
                return Fitted(experts, layout, replace(shape, memory=memory), speed)
    return None


def as_shard(
    exact: Decision,
    shard: Shard,
    fit: Fitted,
    budget: Budget,
    elsewhere: Exact | None,
    running: Decision | None,
) -> Decision:
    """The model from the shard, or exactly where that is about as fast or the shard loses too much.

    What was not taken is among `considered`, or among the blockers where nothing is left.

    :param exact: this node's best exact way, with its speed; WAIT where it has none.
    :param elsewhere: the fastest exact way of another node.
    :param running: what runs of the model on this node, None for nothing.
    """
    missed = shortfalls(budget, shard.measured)
    if missed:
        text = f"{words_of(shard)} loses too much: {'; '.join(missed)}"
        return without_shard(exact, Reason(Code.BELOW_QUALITY, text), fit.tokens_s)
    serves = running is not None and running.shard is not None
    factor = STAYS if serves else WORTH
    if exact.served and fit.tokens_s < factor * exact.tokens_s:
        text = f"exactly it makes {exact.tokens_s:g} tokens/s, from a shard {fit.tokens_s:g}"
        return without_shard(exact, Reason(Code.SLOWER, text), fit.tokens_s)
    reasons = [Reason(Code.CHOSEN, f"served from {words_of(shard)}")]
    if elsewhere is not None and fit.tokens_s < factor * elsewhere.tokens_s:
        text = f"{elsewhere.name} serves it exactly at {elsewhere.tokens_s:g} tokens/s"
        reasons.append(Reason(Code.SOLO_FASTER, text))
    made = Decision(
        model=exact.model,
        strategy=Strategy.EXPERT_SHARD,
        node=exact.node,
        context=fit.shape.context,
        slots=fit.shape.slots,
        layout=fit.layout,
        memory=fit.shape.memory,
        reasons=tuple(reasons),
        asked=exact.asked,
        tokens_s=fit.tokens_s,
        considered=(*_as_considered(exact, fit.tokens_s), *_considered_before(exact)),
        shard=ShardUse(
            shard.key, shard.path, shard.experts, shard.experts_all, shard.mass, shard.measured
        ),
    )
    if running is not None and _same(running, made):
        # Free memory that moved a little never restarts an engine.
        kept = Reason(Code.KEPT, "runs like this already and still answers what is asked")
        return replace(
            running,
            reasons=(kept, *reasons),
            tokens_s=made.tokens_s,
            considered=made.considered,
            shard=made.shard,
        )
    return made


def without_shard(exact: Decision, why: Reason, tokens_s: float = 0.0) -> Decision:
    """The exact decision, with why no shard was taken instead."""
    if not exact.served:
        exact = replace(exact, blockers=(why, *exact.blockers))
    refused = Considered(
        nodes=(exact.node,), tokens_s=tokens_s, reason=why, strategy=Strategy.EXPERT_SHARD
    )
    return replace(exact, considered=(refused, *_considered_before(exact)))


def facts_served(decision: Decision, facts: GgufFacts) -> GgufFacts:
    """Of what the engine loads. :param facts: of the whole model."""
    shard = decision.shard
    return facts if shard is None else shard_facts(facts, shard.experts, (shard.path,))


def words_of(shard: Shard) -> str:
    return (
        f"a shard of {shard.experts} of {shard.experts_all} experts, "
        f"{shard.mass:.0%} of the routing"
    )


def _considered_before(exact: Decision) -> tuple[Considered, ...]:
    """What runs is kept with all that was considered when it was last decided: shards, too."""
    return tuple(one for one in exact.considered if one.strategy is not Strategy.EXPERT_SHARD)


def _as_considered(exact: Decision, tokens_s: float) -> tuple[Considered, ...]:
    if not exact.served:
        return ()
    text = f"exact, {exact.strategy}: {exact.tokens_s:g} tokens/s, the shard {tokens_s:g}"
    nodes = (exact.node, *exact.members)
    why = Reason(Code.SLOWER, text)
    return (Considered(nodes, exact.tokens_s, why, strategy=exact.strategy),)


def _same(running: Decision, made: Decision) -> bool:
    """Whether what runs does what is asked, if perhaps in another shape."""
    return (
        running.shard is not None
        and made.shard is not None
        and (running.shard.key, running.shard.path) == (made.shard.key, made.shard.path)
        and running.asked[1:] == made.asked[1:]
        and set(running.layout.gpus) == set(made.layout.gpus)
    )
