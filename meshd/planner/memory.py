"""Bytes that one engine takes on each device: pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshd.models.facts import GgufFacts
from meshd.planner.compute import compute_bytes
from meshd.planner.kv import ContextSettings, layer_bytes
from meshd.planner.placement import HOST, Placement


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """:ivar device: as in the placement, `HOST` for RAM.

    :ivar reserve_bytes: left to others, and to what no engine reports: a CUDA context is some
        300 to 500 MiB.
    """

    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    reserve_bytes: int = 0

    @property
    def engine_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes

    @property
    def total_bytes(self) -> int:
        return self.engine_bytes + self.reserve_bytes


def estimate(
    facts: GgufFacts,
    placement: Placement,
    settings: ContextSettings,
    *,
    vram_reserve_bytes: int = 0,
    ram_reserve_bytes: int = 0,
) -> tuple[DeviceMemory, ...]:
    """Weights, KV cache, compute buffers and reserve on each device, the host last.

    docs/memory.md compares it with what the engine reports. Prediction blocks are not loaded.

    :raises ValueError: the placement does not have as many layers as the model.
    """
    if len(placement.layers) != len(facts.layers):
        raise ValueError(f"{len(placement.layers)} layers placed of {len(facts.layers)}")
    places = (*placement.devices, HOST)
    weights = dict.fromkeys(places, 0)
    kv = dict.fromkeys(places, 0)
    widest = max((layer.value_elements for layer in facts.layers), default=0)
    for number, (layer, place) in enumerate(zip(facts.layers, placement.layers, strict=True)):
        if layer.prediction:
            continue
        experts = HOST if number in placement.host_experts else place
        weights[place] += layer.weight_bytes - layer.expert_bytes
        weights[experts] += layer.expert_bytes
        kv[place] += layer_bytes(facts, layer, settings, value_widest=widest)
    weights[HOST] += facts.embedding_bytes
    weights[placement.output] += facts.other_bytes
    if placement.output != HOST or not facts.tied_embeddings:
        weights[placement.output] += facts.output_bytes
    return tuple(
        DeviceMemory(
            device=place,
            weights_bytes=weights[place],
            kv_bytes=kv[place],
            compute_bytes=compute_bytes(facts, placement, settings, place),
            reserve_bytes=ram_reserve_bytes if place == HOST else vram_reserve_bytes,
        )
        for place in places
    )


def fits(needs: Iterable[DeviceMemory], free_bytes: dict[str, int]) -> bool:
    """Whether every device has room for its own share; what a device lacks, no other lends."""
    return all(need.total_bytes <= free_bytes.get(need.device, 0) for need in needs)
