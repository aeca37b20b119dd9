"""Bytes of the scheduler's compute buffers: pure.

The engine allocates one arena per device, as large as the largest set of tensors alive at once in
the worst graph: a full micro-batch over a full cache. Which phase is the largest depends on the
model; the counts of live tensors below were calibrated on llama-fit-params and llama-server b11669
(ggml 0.27.0) with the models and settings of tools/memory_table, see docs/memory.md.
"""

from __future__ import annotations

from meshd.models.facts import GgufFacts
from meshd.planner.kv import ContextSettings, cells
from meshd.planner.placement import HOST, Placement

_F32 = 4


def compute_bytes(
    facts: GgufFacts, placement: Placement, settings: ContextSettings, device: str
) -> int:
    """The compute buffer on one device (or `HOST`)."""
    mine = [
        layer
        for layer, place in zip(facts.layers, placement.layers, strict=True)
        if place == device and not layer.prediction
    ]
    tokens = settings.tokens
    hidden = facts.embedding_length * tokens * _F32
    mask = _mask_bytes(facts, settings)
    if not mine and placement.output != device:
        # Only the inputs: embedding rows and masks, and what crosses to the first device.
        return mask + 4 * hidden if device == HOST else 0
    live = 5 if placement.output == HOST and not placement.devices else 4
    phases = [live * hidden]
    if placement.output == device:
        logits = facts.vocabulary_size * settings.logits_rows * _F32
        phases.append(logits + live * hidden)
    for layer in mine:
        dense = max(layer.feed_forward, 0) if not layer.expert_bytes else 0
        phases.append(3 * dense * tokens * _F32 + 5 * hidden)
        if layer.expert_bytes:
            inner = facts.expert_feed_forward * facts.experts_used * tokens * _F32
            outer = facts.embedding_length * facts.experts_used * tokens * _F32
            phases.append(max(3 * inner + 5 * hidden, 2 * outer + 6 * hidden))
        if layer.key_elements:
            phases.append(
                _attention_bytes(facts, settings, layer.heads, layer.sliding) + 3 * hidden
            )
    return mask + max(phases)


def _mask_bytes(facts: GgufFacts, settings: ContextSettings) -> int:
    """One mask per kind of cache; F16 with flash attention, else F32."""
    element = 2 if settings.flash_attention else 4
    kinds = {layer.sliding for layer in facts.layers if layer.key_elements}
    return sum(
        cells(facts, settings, sliding=sliding) * settings.tokens * element for sliding in kinds
    )


def _attention_bytes(facts: GgufFacts, settings: ContextSettings, heads: int, sliding: bool) -> int:
    tokens = settings.tokens
    query = heads * facts.key_length * tokens * _F32
    if settings.flash_attention:
        return 2 * query
    scores = cells(facts, settings, sliding=sliding) * heads * tokens * _F32
    return scores // settings.streams + 3 * query
