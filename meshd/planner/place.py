"""The planner: from a view of the mesh and a config to a plan. Pure, total, and stable.

A running decision is kept as long as it still answers what the config asks, so that free memory
that moved a little never restarts an engine. Everything else is decided in the config's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from meshd.config.settings import Config, Limit, ModelSettings, Role
from meshd.models.facts import GgufFacts
from meshd.node.inventory import Gpu
from meshd.planner.alternatives import exact_ways, lost, strategy_of, words_of
from meshd.planner.fit import Shape, shape_memory, shapes
from meshd.planner.layout import RAM, Budgets
from meshd.planner.pace import measured_paces
from meshd.planner.plan import Code, Decision, DeviceUse, Layout, Plan, Reason, Strategy
from meshd.planner.view import Candidate, Ceiling, ClusterView, NodeView, Running

GIB = 1024**3

_WITHOUT_GPU = (Code.NO_GPU, Code.NO_GPU_BACKEND)
# llama-server keeps old prompts in host memory (--cache-ram); a share of the RAM, bounded.
_PROMPT_CACHE_SHARE = 20
_PROMPT_CACHE_MOST_BYTES = 8 * GIB


def plan(
    view: ClusterView,
    config: Config,
    others: tuple[ModelSettings, ...] = (),
    decided: Mapping[str, Decision] = MappingProxyType({}),
) -> Plan:
    """Decide for every model of the config; the same view and config give the same plan.

    :param others: models that this node may have to take over, which long contexts leave room for.
    :param decided: what was decided already, together with other nodes.
    """
    node = next(node for node in view.nodes if node.id == view.me)
    budgets = budgets_of(node, config)
    for lent in node.lent:
        for part in lent.parts:
            budgets = budgets.less(part.device, part.size_bytes)
    cache_bytes = _cache_bytes(node, config)
    kept = {
        model.name: running.decision
        for model in config.models
        if (running := _keepable(node, config, model)) is not None
    }
    names = {model.name for model in config.models}
    kept.update((name, one) for name, one in decided.items() if name in names)
    for decision in kept.values():
        budgets = _after(decision, cache_bytes, budgets)
    fresh = {}
    for model in config.models:
        if model.name not in kept:
            fresh[model.name] = _decide(node, config, model, budgets, modest=True)
            budgets = _after(fresh[model.name], cache_bytes, budgets)
    for model in others:
        budgets = _after(_decide(node, config, model, budgets, modest=True), cache_bytes, budgets)
    # Long contexts only take what every model of the config leaves over.
    for model in config.models:
        if model.name in fresh and fresh[model.name].served:
            room = _after(fresh[model.name], cache_bytes, budgets, sign=-1)
            grown = _decide(node, config, model, room, modest=False)
            budgets = _after(grown, cache_bytes, room)
            fresh[model.name] = grown
    both = {**kept, **fresh}
    return Plan(tuple(both[model.name] for model in config.models))


def offer(node: NodeView, config: Config, model: ModelSettings) -> Decision:
    """How this node would serve a model if it had no other; what runs of it stays as it is."""
    running = _keepable(node, config, model)
    if running is not None:
        return running.decision
    return _decide(node, config, model, budgets_of(node, config), modest=True)


def _after(decision: Decision, cache_bytes: int, budgets: Budgets, *, sign: int = 1) -> Budgets:
    """What a decision leaves to the others: less its memory, and the prompts that it may keep.

    :param sign: -1 gives it back.
    """
    if not decision.served:
        return budgets
    for use in decision.memory:
        budgets = budgets.less(use.device, sign * use.total_bytes)
    if decision.strategy is Strategy.PIPELINE:
        return budgets
    return budgets.less(RAM, sign * cache_bytes)


def prompt_cache_bytes(ram_total_bytes: int, limit: Limit | None = None) -> int:
    """How much host memory one engine may use to keep old prompts."""
    usable_bytes = ram_total_bytes
    if limit is not None and limit.ram_bytes is not None:
        usable_bytes = min(usable_bytes, limit.ram_bytes)
    return min(_PROMPT_CACHE_MOST_BYTES, usable_bytes // _PROMPT_CACHE_SHARE)


def _cache_bytes(node: NodeView, config: Config) -> int:
    return prompt_cache_bytes(node.hardware.ram.total_bytes, config.node.limit)


def budgets_of(node: NodeView, config: Config) -> Budgets:
    """What may be planned with: measured free memory, plus our own engines', less the reserve, and
    no more than the limit.
    """
    # A unified device's memory is the RAM: one budget for both, so it is not spent twice.
    unified = tuple(gpu.id for gpu in node.gpus if gpu.unified)
    ours: dict[str, int] = {}
    coming: dict[str, int] = {}
    for running in node.running:
        if running.resident or running.loading:
            held = ours if running.resident else coming
            for use in running.decision.memory:
                device = RAM if use.device in unified else use.device
                held[device] = held.get(device, 0) + _taken(use)
    for lent in node.lent:
        if lent.name in node.lent_resident:
            for part in lent.parts:
                ours[part.device] = ours.get(part.device, 0) + part.size_bytes
    reserve, limit = config.node.reserve, config.node.limit
    devices = {
        # With what is being loaded it cannot be more than the card has: else a model that is
        # changed while it loads would not find room where it already is.
        gpu.id: _within(
            limit.vram_bytes,
            min(gpu.total_bytes, gpu.free_bytes + ours.get(gpu.id, 0) + coming.get(gpu.id, 0))
            - reserve.vram_bytes,
        )
        for gpu in node.gpus
        if not gpu.unified
    }
    # Who is taken to have filled memory may have died: then it is free, and counted twice.
    whole = node.hardware.ram
    ram = min(whole.total_bytes, whole.available_bytes + ours.get(RAM, 0)) - reserve.ram_bytes
    return Budgets({**devices, RAM: _within(limit.ram_bytes, ram)}, unified)


def budgets_for(node: NodeView, config: Config, model: ModelSettings, budgets: Budgets) -> Budgets:
    """What of them one model's engine may take, beside the prompts that it may keep: no more than
    the ceiling of one that ran out of memory.
    """
    budgets = budgets.less(RAM, _cache_bytes(node, config))
    ceiling = node.ceilings.get(model.name)
    if ceiling is None:
        return budgets
    return budgets.less(RAM, max(0, budgets.free(RAM) - ceiling.ram_bytes))


def _within(limit_bytes: int | None, size_bytes: int) -> int:
    return size_bytes if limit_bytes is None else min(limit_bytes, size_bytes)


def _taken(use: DeviceUse) -> int:
    # Weights in RAM are file pages (mmap): the kernel counts them as available all along.
    return use.total_bytes - (use.weights_bytes if use.device == RAM else 0)


def _asked(model: ModelSettings) -> tuple[str, str, str]:
    return (model.source, str(model.context), str(model.slots))


def _keepable(node: NodeView, config: Config, model: ModelSettings) -> Running | None:
    running = next((r for r in node.running if r.decision.model == model.name), None)
    candidate = node.candidate(model.name)
    if running is None or candidate is None or _blocker(node, config, model, candidate):
        return None
    decision = running.decision
    same = (
        decision.served
        # Whether a shard goes on is decided beside the exact ways, of which this is one.
        and decision.shard is None
        # Which file it is, its identity tells: whoever else names it may spell its path otherwise.
        and decision.asked[1:] == _asked(model)[1:]
        and running.identity == candidate.identity
        and set(decision.layout.gpus) <= {gpu.id for gpu in node.gpus}
        # A driver that was late at boot must not leave its GPU idle for ever.
        and not (node.gpus and any(reason.code in _WITHOUT_GPU for reason in decision.reasons))
        and _limited(decision, node, config.node.limit)
        and _below(decision, node.ceilings.get(model.name))
    )
    if not same:
        return None
    kept = Reason(Code.KEPT, "runs like this already and still answers what is asked")
    reasons = (kept, *(r for r in decision.reasons if r.code is not Code.KEPT))
    return replace(running, decision=replace(decision, reasons=reasons))


def _limited(decision: Decision, node: NodeView, limit: Limit) -> bool:
    """Whether it keeps within the limit, which may have been lowered since."""
    own = {gpu.id for gpu in node.gpus if not gpu.unified}
    ram_bytes = sum(use.total_bytes for use in decision.memory if use.device not in own)
    gpus = [use.total_bytes for use in decision.memory if use.device in own]
    return _within(limit.ram_bytes, ram_bytes) == ram_bytes and all(
        _within(limit.vram_bytes, taken) == taken for taken in gpus
    )


def _below(decision: Decision, ceiling: Ceiling | None) -> bool:
    planned = sum(use.total_bytes for use in decision.memory if use.device == RAM)
    return ceiling is None or planned <= ceiling.ram_bytes


def _blocker(
    node: NodeView, config: Config, model: ModelSettings, candidate: Candidate | None
) -> tuple[Reason, str] | None:
    """Whatever rules a model out before memory is looked at, and what a person can do."""
    if config.node.role in (Role.CLIENT, Role.STANDBY):
        text = f"this node's role is {config.node.role}: it serves nothing of its own"
        return Reason(Code.ROLE, text), "set node.role to auto or serve"
    if not node.engine:
        return Reason(Code.NO_ENGINE, "no engine is installed"), "meshd engine install"
    if candidate is None or candidate.facts is None:
        problem = candidate.problem if candidate else f"{model.source}: not found"
        return Reason(Code.NO_MODEL, problem), "put the file there, or mend models[].source"
    if candidate.facts.mmproj:
        text = f"{model.source} is a projector (mmproj), not a language model"
        return Reason(Code.NOT_A_LANGUAGE_MODEL, text), "name the model's own file"
    if node.gpu_problem:
        return Reason(Code.GPU_PINNED_MISSING, node.gpu_problem), "mend node.gpus"
    trained = candidate.facts.context_train
    if model.context != "auto" and trained and model.context > trained:
        text = f"context {model.context} is beyond the {trained} tokens it was trained for"
        return Reason(Code.CONTEXT_TOO_LONG, text), f"set context to {trained} or less"
    return None


def _decide(
    node: NodeView, config: Config, model: ModelSettings, budgets: Budgets, *, modest: bool
) -> Decision:
    wait = Decision(model.name, Strategy.WAIT, node.id, asked=_asked(model))
    candidate = node.candidate(model.name)
    blocked = _blocker(node, config, model, candidate)
    if blocked:
        reason, next_step = blocked
        return replace(wait, blockers=(reason,), next_step=next_step)
    assert candidate is not None
    assert candidate.facts is not None
    facts = candidate.facts
    budgets = budgets_for(node, config, model, budgets)
    notes = _notes(node)
    ceiling = node.ceilings.get(model.name)
    if ceiling is not None:
        text = f"ran out of memory three times with {ceiling.failed_bytes / GIB:.1f} GiB planned"
        notes = (*notes, Reason(Code.RAN_OUT, text))
    tried = tuple(shapes(facts, model, modest=modest))
    ways = exact_ways(facts, node.gpus, tried, budgets, measured_paces(node.speeds))
    others = lost(facts, node.gpus, tried, budgets, ways, node.id)
    if not ways:
        return replace(
            wait,
            blockers=(*notes, _shortfall(facts, node.gpus, tried, budgets)),
            next_step=("raise node.limit, " if config.node.limit != Limit() else "free memory, ")
            + "lower context or slots, or take a smaller quantisation",
            considered=others,
        )
    layout, shape = ways[0].layout, ways[0].shape
    wished = next(shapes(facts, model, modest=False))
    return replace(
        wait,
        strategy=strategy_of(facts, layout),
        context=shape.context,
        slots=shape.slots,
        layout=layout,
        memory=shape.memory,
        reasons=(_chosen(facts, layout), *notes, *_trimmed(shape, wished)),
        tokens_s=ways[0].tokens_s,
        considered=others,
    )


def _chosen(facts: GgufFacts, layout: Layout) -> Reason:
    if not layout.gpus:
        return Reason(Code.CHOSEN, "fits in this node's memory and runs on the processor")
    return Reason(Code.CHOSEN, f"fits {words_of(facts, layout)}")


def _notes(node: NodeView) -> tuple[Reason, ...]:
    if not node.hardware.gpus:
        return (Reason(Code.NO_GPU, "this node has no GPU"),)
    if not node.gpus:
        text = "this node's engine has no backend for the GPUs it may use"
        return (Reason(Code.NO_GPU_BACKEND, text),)
    return ()


def _trimmed(best: Shape, wished: Shape) -> tuple[Reason, ...]:
    if (best.context, best.slots) == (wished.context, wished.slots):
        return ()
    text = (
        f"context {best.context} and {best.slots} slots rather than {wished.context} and "
        f"{wished.slots}, so that it fits"
    )
    return (Reason(Code.TRIMMED, text),)


def _shortfall(
    facts: GgufFacts, gpus: tuple[Gpu, ...], shapes: tuple[Shape, ...], budgets: Budgets
) -> Reason:
    """By how much the smallest shape misses, all of it in RAM: the last resort that failed too."""
    least = shapes[-1]
    memory = shape_memory(facts, Layout(), least)
    wanted = sum(use.total_bytes for use in memory)
    have = max(0, budgets.free(RAM))
    text = (
        f"needs {wanted / GIB:.1f} GiB for context {least.context} and {least.slots} slots; "
        f"RAM has {have / GIB:.1f} GiB to spare"
    )
    if gpus:
        text += f", its GPUs {budgets.gpu_bytes() / GIB:.1f} GiB"
    return Reason(Code.NO_MEMORY, text)
