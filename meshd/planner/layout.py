"""Ways to lay a model over one node's devices, best first, and whether they fit. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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
    roomy = _by_room(gpus, budgets)
    layers = len(facts.layers) + 1
    for gpu in roomy:
        yield Layout((gpu.id,), (layers,))
    for count in range(2, len(roomy) + 1):
        yield _spread(layers, roomy[:count], budgets)


def mixed_layouts(facts: GgufFacts, gpus: Sequence[Gpu], budgets: Budgets) -> Iterator[Layout]:
    """Part on GPUs, part in RAM: experts leave first (few of their bytes are read for a token),
    then whole layers; last of all, nothing on a GPU.
    """
    roomy = _by_room(gpus, budgets)
    layers = len(facts.layers)
    if roomy and facts.moe:
        whole = _spread(layers + 1, roomy, budgets)
        for moved in range(1, layers + 1):
            yield replace(whole, cpu_moe_layers=moved)
    if roomy:
        for kept in range(layers, 0, -1):
            yield _spread(kept, roomy, budgets)
    yield Layout()


def _by_room(gpus: Sequence[Gpu], budgets: Budgets) -> list[Gpu]:
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
