"""A mixture as it would be with fewer experts in each layer, so that what it takes and how fast it
is are predicted by the same code as of any other model. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from meshd.models.facts import GgufFacts, LayerFacts


# The same facts as the same object: memory and reads are remembered by identity (planner/fit.py).
@lru_cache(maxsize=256)
def shard_facts(facts: GgufFacts, experts: int, files: tuple[str, ...] = ()) -> GgufFacts:
    """The model with so many experts in each layer that has any.

    Exact in all but `file_bytes`, where the header and what tensors are aligned by stay.

    :param files: of the shard, where it has been written.
    :raises ValueError: it is no mixture, or has not so many.
    """
    if not 0 < experts <= facts.experts:
        raise ValueError(f"{experts} of {facts.experts} experts a layer")
    layers = tuple(_layer(layer, experts, facts.experts) for layer in facts.layers)
    saved = sum(
        before.weight_bytes - after.weight_bytes
        for before, after in zip(facts.layers, layers, strict=True)
    )
    dropped = facts.expert_parameters - facts.expert_parameters * experts // facts.experts
    return replace(
        facts,
        files=files or facts.files,
        file_bytes=facts.file_bytes - saved,
        parameters=facts.parameters - dropped,
        expert_parameters=facts.expert_parameters - dropped,
        layers=layers,
        experts=experts,
        experts_used=used_of(facts, experts),
    )


def used_of(facts: GgufFacts, experts: int) -> int:
    """How many experts a token can still use. Of groups that the router did not choose it takes
    none.
    """
    if facts.expert_groups:
        reached = experts // facts.expert_groups * max(1, facts.expert_groups_used)
        return min(facts.experts_used, reached)
    return min(facts.experts_used, experts)


def least_experts(facts: GgufFacts) -> int:
    """The fewest a layer with which every token still uses as many as in the whole model."""
    step = facts.expert_groups or 1
    # A group's worth is that of its two best experts together (build_moe_ffn, llama-graph.cpp).
    least = 2 * step
    while least < facts.experts and used_of(facts, least) < facts.experts_used:
        least += step
    return min(least, facts.experts)


def _layer(layer: LayerFacts, experts: int, of: int) -> LayerFacts:
    if not layer.expert_bytes:
        return layer
    kept = layer.expert_bytes * experts // of
    router = layer.router_bytes * experts // of
    largest = layer.largest_tensor_bytes
    if largest > layer.largest_dense_bytes:
        largest = max(layer.largest_dense_bytes, largest * experts // of)
    left_out = layer.expert_bytes - kept + layer.router_bytes - router
    return replace(
        layer,
        weight_bytes=layer.weight_bytes - left_out,
        expert_bytes=kept,
        router_bytes=router,
        largest_tensor_bytes=largest,
    )
