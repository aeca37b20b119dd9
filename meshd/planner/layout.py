"""Ways to lay a model over one node's devices, best first, and whether they fit. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from meshd.models.facts import GgufFacts
from meshd.node.inventory import Gpu
from meshd.planner.plan import DeviceUse, Layout

RAM = "ram"


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes that may be planned with, by device: GPU ids and ``ram``.

    :ivar unified: GPUs whose memory is the RAM; what they use is taken from there.
    """

    bytes_by_device: Mapping[str, int]
    unified: tuple[str, ...] = ()

    def free(self, device: str) -> int:
        return self.bytes_by_device.get(RAM if device in self.unified else device, 0)

    def gpu_bytes(self) -> int:
        return sum(max(0, b) for device, b in self.bytes_by_device.items() if device != RAM)

    def less(self, device: str, taken_bytes: int) -> Budgets:
        device = RAM if device in self.unified else device
        left = {**self.bytes_by_device, device: self.free(device) - taken_bytes}
        return replace(self, bytes_by_device=left)

    def without(self, memory: Sequence[DeviceUse]) -> Budgets:
        budgets = self
        for use in memory:
            budgets = budgets.less(use.device, use.total_bytes)
        return budgets

    def hold(self, memory: Sequence[DeviceUse]) -> bool:
        left: dict[str, int] = {}
        for use in memory:
            device = RAM if use.device in self.unified else use.device
            left[device] = left.get(device, self.free(device)) - use.total_bytes
        return all(
            left[RAM if use.device in self.unified else use.device] >= 0
            for use in memory
            if use.total_bytes
        )


def whole_layouts(facts: GgufFacts, gpus: Sequence[Gpu], budgets: Budgets) -> Iterator[Layout]:
    """Every layer on GPUs: on one, the roomiest first, else spread over ever more of them."""
    roomy = by_room(gpus, budgets)
    layers = len(facts.layers) + 1
    for gpu in roomy:
        yield Layout((gpu.id,), (layers,))
    for count in range(2, len(roomy) + 1):
        yield _spread(layers, roomy[:count], budgets)


def without_experts(
    facts: GgufFacts,
    gpus: Sequence[Gpu],
    budgets: Budgets,
    moved: int,
    kv_bytes: Sequence[int] = (),
) -> Layout:
    """All layers on GPUs, the experts of the first `moved` of them in RAM.

    Over several GPUs the layers that lost their experts weigh little, so the first GPU takes more
    of them: each gets bytes in proportion to its free memory.

    :param gpus: one at least with free memory. :param kv_bytes: each block's KV cache.
    """
    sizes = [
        layer.weight_bytes - (layer.expert_bytes if number < moved else 0)
        for number, layer in enumerate(facts.layers)
    ]
    for number, size_bytes in enumerate(kv_bytes):
        sizes[number] += size_bytes
    sizes.append(facts.output_bytes + facts.other_bytes)
    return replace(_by_bytes(sizes, by_room(gpus, budgets), budgets), cpu_moe_layers=moved)


def with_layers(gpus: Sequence[Gpu], budgets: Budgets, kept: int) -> Layout:
    """The last `kept` layers on GPUs, the others and the output layer in RAM.

    :param gpus: one at least with free memory.
    """
    return _spread(kept, by_room(gpus, budgets), budgets)


def by_room(gpus: Sequence[Gpu], budgets: Budgets) -> list[Gpu]:
    """Those with free memory, the roomiest first."""
    roomy = sorted(gpus, key=lambda gpu: (-budgets.free(gpu.id), gpu.id))
    return [gpu for gpu in roomy if budgets.free(gpu.id) > 0]


def _spread(layers: int, gpus: Sequence[Gpu], budgets: Budgets) -> Layout:
    """Divide `layers` in proportion to free memory, by largest remainders; the sum is exact."""
    if len(gpus) == 1:
        return Layout((gpus[0].id,), (layers,))
    weights = [budgets.free(gpu.id) for gpu in gpus]
    exact = [layers * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(gpus)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: layers - sum(counts)]:
        counts[i] += 1
    used = [(gpu.id, count) for gpu, count in zip(gpus, counts, strict=True) if count]
    return Layout(tuple(name for name, _ in used), tuple(count for _, count in used))


def _by_bytes(sizes: Sequence[int], gpus: Sequence[Gpu], budgets: Budgets) -> Layout:
    """Layers in their order, to each GPU the bytes that are its part of the free memory."""
    room = [budgets.free(gpu.id) for gpu in gpus]
    ends = [end / sum(room) for end in accumulate(room)]
    total, done = max(1, sum(sizes)), 0
    counts = [0] * len(gpus)
    for size_bytes in sizes:
        # Where its middle falls, so that each is over or under by half a layer at most.
        middle = (done + size_bytes / 2) / total
        counts[min(bisect_right(ends, middle), len(gpus) - 1)] += 1
        done += size_bytes
    used = [(gpu.id, count) for gpu, count in zip(gpus, counts, strict=True) if count]
    return Layout(tuple(name for name, _ in used), tuple(count for _, count in used))
