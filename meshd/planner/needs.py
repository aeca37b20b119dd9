"""What a layout of ours takes on each device, in the planner's words. Pure."""

from __future__ import annotations

from meshd.models.facts import GgufFacts
from meshd.planner.kv import ContextSettings
from meshd.planner.layout import RAM
from meshd.planner.memory import estimate
from meshd.planner.placement import HOST, Placement, on_host, split
from meshd.planner.plan import DeviceUse, Layout

_MICRO_BATCH = 512
_PROMPT_MOST = 2048


def needs(facts: GgufFacts, layout: Layout, *, context: int, slots: int) -> tuple[DeviceUse, ...]:
    """Memory on each device for `slots` requests of `context` tokens each, RAM last."""
    settings = ContextSettings(
        context=context * slots, slots=slots, ubatch=micro_batch(facts, context)
    )
    return tuple(
        DeviceUse(
            device=RAM if memory.device == HOST else memory.device,
            weights_bytes=memory.weights_bytes,
            kv_bytes=memory.kv_bytes,
            compute_bytes=memory.compute_bytes,
        )
        for memory in estimate(facts, placement_of_layout(facts, layout), settings)
    )


def micro_batch(facts: GgufFacts, context: int) -> int:
    """Tokens in one graph: an embedding model attends both ways and takes a prompt at once."""
    return min(context, _PROMPT_MOST) if facts.pooling else _MICRO_BATCH


def placement_of_layout(facts: GgufFacts, layout: Layout) -> Placement:
    if not layout.gpus:
        return on_host(facts)
    return split(
        facts,
        layout.gpus,
        proportions=layout.gpu_layers,
        gpu_layers=sum(layout.gpu_layers),
        n_cpu_moe=layout.cpu_moe_layers,
    )
