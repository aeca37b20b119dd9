"""Bytes of the scheduler's compute buffers: pure.

The engine allocates one arena per device, as large as the largest set of tensors alive at once in
the worst graph: a full micro-batch over a full cache. Which phase is the largest depends on the
model; the counts of live tensors below were calibrated on llama-fit-params and llama-server b11669
(ggml 0.27.0) with the models and settings of tools/memory_table, see docs/memory.md.
"""

from __future__ import annotations

from meshd.models.facts import GgufFacts, LayerFacts
from meshd.planner.kv import ContextSettings, cells
from meshd.planner.placement import HOST, Placement

_F32 = 4
_PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES
_OFFLOAD_TOKENS = 32  # the smallest batch that backends take over (offload_op)


def compute_bytes(
    facts: GgufFacts, placement: Placement, settings: ContextSettings, device: str
) -> int:
    """The compute buffer on one device (or `HOST`)."""
    tokens = settings.tokens
    hidden = facts.embedding_length * tokens * _F32
    copies = _PIPELINE_COPIES if placement.pipelined else 1
    mask = _mask_bytes(facts, settings) * copies
    phases = [0]
    if placement.output == device and facts.output_bytes:
        logits = facts.vocabulary_size * settings.logits_rows * _F32
        if device == HOST and device not in placement.layers:
            # A split's: nothing but what crosses over from the last device, and its norm.
            phases.append(logits + 2 * hidden)
        else:
            live = 9 if placement.pipelined else 4 if placement.devices else 5
            phases.append(mask + logits + live * hidden)
    if device == HOST and placement.devices:
        # The inputs, embedding rows and masks, and what crosses to the first device.
        crossing = 10 if placement.pipelined else 4 if settings.flash_attention else 5
        phases.append(mask + crossing * hidden)
        if placement.host_experts:
            phases.append(_experts_bytes(facts, tokens) + 4 * hidden)
    crossing = 0
    if placement.pipelined:
        crossing = 11 if device == placement.layers[0] else 6
    helps = settings.op_offload and tokens >= _OFFLOAD_TOKENS and device in placement.devices[:1]
    for number, (layer, place) in enumerate(zip(facts.layers, placement.layers, strict=True)):
        on_host = place == HOST or (layer.expert_bytes > 0 and number in placement.host_experts)
        helped = helps and on_host
        if layer.prediction or (place != device and not helped):
            continue
        live = 4 * hidden
        if layer.key_elements:
            live = max(live, _attention_bytes(facts, settings, layer))
        if layer.expert_bytes and (helped or not on_host or device == HOST):
            live = max(live, _experts_bytes(facts, tokens) + 5 * hidden)
        elif not layer.expert_bytes:
            live = max(live, 3 * layer.feed_forward * tokens * _F32 + 5 * hidden)
        if helped:
            live += layer.largest_tensor_bytes
        phases.append(mask + live + crossing * hidden)
    return max(phases)


def _experts_bytes(facts: GgufFacts, tokens: int) -> int:
    """Gate, up and their product; or what the experts put out, before and after weighting."""
    inner = facts.expert_feed_forward * facts.experts_used * tokens * _F32
    outer = facts.embedding_length * facts.experts_used * tokens * _F32
    return max(3 * inner, 2 * outer)


def _mask_bytes(facts: GgufFacts, settings: ContextSettings) -> int:
    """One mask per kind of cache; F16 with flash attention, else F32."""
    element = 2 if settings.flash_attention else 4
    kinds = {layer.sliding for layer in facts.layers if layer.key_elements}
    if not kinds and not any(layer.recurrent_bytes for layer in facts.layers):
        return settings.tokens**2 * element  # an encoder's tokens attend to their own batch
    return sum(
        cells(facts, settings, sliding=sliding) * settings.tokens * element for sliding in kinds
    )


def _attention_bytes(facts: GgufFacts, settings: ContextSettings, layer: LayerFacts) -> int:
    tokens = settings.tokens
    hidden = facts.embedding_length * tokens * _F32
    if facts.mla_key_length:
        # The query, its part that is absorbed into the latent space, and both joined.
        row = facts.mla_key_length + facts.value_length + facts.key_length
        live = row * layer.heads * tokens * _F32 + 6 * hidden
    else:
        live = 3 * layer.heads * facts.key_length * tokens * _F32 + 3 * hidden
    if settings.flash_attention:
        return live
    return live + cells(facts, settings, sliding=layer.sliding) * layer.heads * tokens * _F32
