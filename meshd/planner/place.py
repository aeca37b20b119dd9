"""The planner: from a view of the mesh and a config to a plan. Pure, total, and stable.

A running decision is kept as long as it still answers what the config asks, so that free memory
that moved a little never restarts an engine. Everything else is decided in the config's order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from meshd.config.settings import Config, ModelSettings, Role
from meshd.models.facts import GgufFacts
from meshd.node.inventory import Gpu
from meshd.planner.layout import RAM, Budgets, mixed_layouts, whole_layouts
from meshd.planner.needs import needs
from meshd.planner.plan import Code, Decision, DeviceUse, Layout, Plan, Reason, Strategy
from meshd.planner.view import Candidate, ClusterView, NodeView, Running

GIB = 1024**3

# A context that serves a conversation with tools; more is taken while memory is there.
_GOOD_CONTEXT = 8192
_MOST_CONTEXT = 65536
_LEAST_CONTEXT = 2048
_SLOTS = (4, 2, 1)
_WITHOUT_GPU = (Code.NO_GPU, Code.NO_GPU_BACKEND)
# llama-server keeps old prompts in host memory (--cache-ram); a share of the RAM, bounded.
_PROMPT_CACHE_SHARE = 20
_PROMPT_CACHE_MOST_BYTES = 8 * GIB


def plan(view: ClusterView, config: Config) -> Plan:
    """Decide for every model of the config; the same view and config give the same plan."""
    node = next(node for node in view.nodes if node.id == view.me)
    budgets = _budgets(node, config)
    kept = {
        model.name: running.decision
        for model in config.models
        if (running := _keepable(node, config, model)) is not None
    }
    for decision in kept.values():
        budgets = _after(decision, node, budgets)
    decisions = []
    for model in config.models:
        if model.name in kept:
            decisions.append(kept[model.name])
            continue
        decision = _decide(node, config, model, budgets)
        budgets = _after(decision, node, budgets)
        decisions.append(decision)
    return Plan(tuple(decisions))


def _after(decision: Decision, node: NodeView, budgets: Budgets) -> Budgets:
    """What a decision leaves to the others: less its memory, and the prompts that it may keep."""
    if not decision.served:
        return budgets
    cache_bytes = prompt_cache_bytes(node.hardware.ram.total_bytes)
    return budgets.without(decision.memory).less(RAM, cache_bytes)


def prompt_cache_bytes(ram_total_bytes: int) -> int:
    """How much host memory one engine may use to keep old prompts."""
    return min(_PROMPT_CACHE_MOST_BYTES, ram_total_bytes // _PROMPT_CACHE_SHARE)


def _budgets(node: NodeView, config: Config) -> Budgets:
    """What may be planned with: measured free memory, plus our own engines', less the reserve."""
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
    reserve = config.node.reserve
    devices = {
        # With what is being loaded it cannot be more than the card has: else a model that is
        # changed while it loads would not find room where it already is.
        gpu.id: min(gpu.total_bytes, gpu.free_bytes + ours.get(gpu.id, 0) + coming.get(gpu.id, 0))
        - reserve.vram_bytes
        for gpu in node.gpus
        if not gpu.unified
    }
    ram = node.hardware.ram.available_bytes + ours.get(RAM, 0) - reserve.ram_bytes
    return Budgets({**devices, RAM: ram}, unified)


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
        and decision.asked == _asked(model)
        and running.identity == candidate.identity
        and set(decision.layout.gpus) <= {gpu.id for gpu in node.gpus}
        # A driver that was late at boot must not leave its GPU idle for ever.
        and not (node.gpus and any(reason.code in _WITHOUT_GPU for reason in decision.reasons))
    )
    if not same:
        return None
    kept = Reason(Code.KEPT, "runs like this already and still answers what is asked")
    reasons = (kept, *(r for r in decision.reasons if r.code is not Code.KEPT))
    return replace(running, decision=replace(decision, reasons=reasons))


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


def _decide(node: NodeView, config: Config, model: ModelSettings, budgets: Budgets) -> Decision:
    wait = Decision(model.name, Strategy.WAIT, node.id, asked=_asked(model))
    candidate = node.candidate(model.name)
    blocked = _blocker(node, config, model, candidate)
    if blocked:
        reason, next_step = blocked
        return replace(wait, blockers=(reason,), next_step=next_step)
    assert candidate is not None
    assert candidate.facts is not None
    facts = candidate.facts
    budgets = budgets.less(RAM, prompt_cache_bytes(node.hardware.ram.total_bytes))
    notes = _notes(node)
    shapes = tuple(_shapes(facts, model))
    found = _first_fit(facts, node.gpus, shapes, budgets)
    if found is None:
        return replace(
            wait,
            blockers=(*notes, _shortfall(facts, node.gpus, shapes, budgets)),
            next_step="free memory, lower context or slots, or take a smaller quantisation",
        )
    layout, shape = found
    return replace(
        wait,
        strategy=_strategy(facts, layout),
        context=shape.context,
        slots=shape.slots,
        layout=layout,
        memory=shape.memory,
        reasons=(_chosen(facts, layout), *notes, *_trimmed(shape, shapes)),
    )


@dataclass(frozen=True, slots=True)
class _Shape:
    context: int
    slots: int
    memory: tuple[DeviceUse, ...] = ()


def _shapes(facts: GgufFacts, model: ModelSettings) -> Iterator[_Shape]:
    """Contexts and slots to try, best first: many short slots before few, long contexts last."""
    trained = facts.context_train or _GOOD_CONTEXT
    slots = _SLOTS if model.slots == "auto" else (model.slots,)
    if model.context != "auto":
        for count in slots:
            yield _Shape(model.context, count)
        return
    for context in _halvings(min(trained, _MOST_CONTEXT), min(trained, _GOOD_CONTEXT)):
        yield _Shape(context, slots[0])
    for count in slots[1:]:
        yield _Shape(min(trained, _GOOD_CONTEXT), count)
    if trained > _LEAST_CONTEXT:
        shorter = min(trained, _GOOD_CONTEXT) // 2
        for context in _halvings(shorter, _LEAST_CONTEXT):
            yield _Shape(context, slots[-1])


def _halvings(first: int, last: int) -> Iterator[int]:
    """From `first` down to `last` by powers of two, both ends included."""
    value = first
    while value > last:
        yield value
        value = 1 << ((value - 1).bit_length() - 1)
    yield last


def _first_fit(
    facts: GgufFacts, gpus: tuple[Gpu, ...], shapes: tuple[_Shape, ...], budgets: Budgets
) -> tuple[Layout, _Shape] | None:
    """Whole on GPUs before parts in RAM; within each, a good context before a short one."""
    good = min(facts.context_train or _GOOD_CONTEXT, _GOOD_CONTEXT)
    roomy = tuple(shape for shape in shapes if shape.context >= good and shape.slots == _SLOTS[0])
    tight = tuple(shape for shape in shapes if shape not in roomy)
    for layouts in (whole_layouts, mixed_layouts):
        for group in filter(None, (roomy, tight)):
            for layout in layouts(facts, gpus, budgets):
                # The last shape takes least: most layouts are ruled out by it alone.
                if not budgets.hold(_memory(facts, layout, group[-1])):
                    continue
                for shape in group:
                    memory = _memory(facts, layout, shape)
                    if budgets.hold(memory):
                        return layout, replace(shape, memory=memory)
    return None


def _memory(facts: GgufFacts, layout: Layout, shape: _Shape) -> tuple[DeviceUse, ...]:
    return needs(facts, layout, context=shape.context, slots=shape.slots)


def _strategy(facts: GgufFacts, layout: Layout) -> Strategy:
    if not layout.gpus:
        return Strategy.SOLO_CPU
    whole = sum(layout.gpu_layers) > len(facts.layers) and not layout.cpu_moe_layers
    return Strategy.SOLO_GPU if whole else Strategy.SOLO_OFFLOAD


def _chosen(facts: GgufFacts, layout: Layout) -> Reason:
    if not layout.gpus:
        return Reason(Code.CHOSEN, "fits in this node's memory and runs on the processor")
    where = "one GPU" if len(layout.gpus) == 1 else f"{len(layout.gpus)} GPUs of this node"
    on_gpu = min(sum(layout.gpu_layers), len(facts.layers))
    if layout.cpu_moe_layers:
        text = f"fits on {where} with the experts of {layout.cpu_moe_layers} layers in RAM"
    elif on_gpu < len(facts.layers):
        text = f"{on_gpu} of {len(facts.layers)} layers fit on {where}, the others in RAM"
    else:
        text = f"fits on {where} as a whole"
    return Reason(Code.CHOSEN, text)


def _notes(node: NodeView) -> tuple[Reason, ...]:
    if not node.hardware.gpus:
        return (Reason(Code.NO_GPU, "this node has no GPU"),)
    if not node.gpus:
        text = "this node's engine has no backend for the GPUs it may use"
        return (Reason(Code.NO_GPU_BACKEND, text),)
    return ()


def _trimmed(best: _Shape, shapes: tuple[_Shape, ...]) -> tuple[Reason, ...]:
    wished = shapes[0]
    if (best.context, best.slots) == (wished.context, wished.slots):
        return ()
    text = (
        f"context {best.context} and {best.slots} slots rather than {wished.context} and "
        f"{wished.slots}, so that it fits"
    )
    return (Reason(Code.TRIMMED, text),)


def _shortfall(
    facts: GgufFacts, gpus: tuple[Gpu, ...], shapes: tuple[_Shape, ...], budgets: Budgets
) -> Reason:
    """By how much the smallest shape misses, all of it in RAM: the last resort that failed too."""
    least = shapes[-1]
    memory = _memory(facts, Layout(), least)
    wanted = sum(use.total_bytes for use in memory)
    have = max(0, budgets.free(RAM))
    text = (
        f"needs {wanted / GIB:.1f} GiB for context {least.context} and {least.slots} slots; "
        f"RAM has {have / GIB:.1f} GiB to spare"
    )
    if gpus:
        text += f", its GPUs {budgets.gpu_bytes() / GIB:.1f} GiB"
    return Reason(Code.NO_MEMORY, text)
