"""What a model's layers ask of whatever device they lie on, and its other parts of the host. Pure.

Compute buffers are asked of `compute.compute_bytes` for one layer of each kind: a buffer is the
largest of what its layers ask for, so any number of equal layers is as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from meshd.models.facts import GgufFacts, LayerFacts
from meshd.planner.compute import compute_bytes
from meshd.planner.divide import Load
from meshd.planner.fit import Shape
from meshd.planner.kv import ContextSettings, layer_bytes
from meshd.planner.needs import micro_batch
from meshd.planner.pace import layer_reads
from meshd.planner.placement import HOST, Placement

GPU = "gpu"
"""Any device that is not the host's RAM."""
_OTHER = "other"


class Workload:
    """One model and one shape; kept for all groups that are tried with it.

    :ivar reads: bytes a token, by layer. :ivar settings: as the engine is told.
    """

    def __init__(self, facts: GgufFacts, shape: Shape) -> None:
        self.settings = settings_of(facts, shape)
        self.reads = [sum(pair) for pair in layer_reads(facts, shape.context)]
        self._facts = facts
        self._kinds = tuple(dict.fromkeys(facts.layers))
        self._loads: dict[bool, Load] = {}

    def load(self, *, pipelined: bool) -> Load:
        """:param pipelined: the engine keeps copies to overlap prompt batches (`Placement`)."""
        known = self._loads.get(pipelined)
        if known is None:
            known = self._loads[pipelined] = self._load(pipelined=pipelined)
        return known

    def host_weights(self, output: str) -> int:
        """In RAM in any case. :param output: `HOST` if the output layer is there too."""
        facts = self._facts
        size_bytes = facts.embedding_bytes
        if output == HOST:
            size_bytes += facts.other_bytes
            size_bytes += 0 if facts.tied_embeddings else facts.output_bytes
        return size_bytes

    def host_bytes(self, output: str, *, pipelined: bool) -> int:
        """Likewise, with the compute buffer while no layer is there."""
        return self.host_weights(output) + self._probe(HOST, (), output, pipelined=pipelined)

    def output_bytes(self, *, pipelined: bool) -> int:
        """What the output layer adds to its GPU beside the buffer of the layers there."""
        logits = self._probe(GPU, (), GPU, pipelined=pipelined)
        layers = max(self.load(pipelined=pipelined).work, default=0)
        return self._facts.output_bytes + self._facts.other_bytes + max(0, logits - layers)

    def _load(self, *, pipelined: bool) -> Load:
        facts = self._facts
        widest = max((layer.value_elements for layer in facts.layers), default=0)
        sizes: dict[LayerFacts, int] = {}
        work: dict[LayerFacts, tuple[int, int, int]] = {}
        for layer in self._kinds:
            cached = layer_bytes(facts, layer, self.settings, value_widest=widest)
            sizes[layer] = 0 if layer.prediction else layer.weight_bytes + cached
            other = self._inner(layer, pipelined=pipelined)
            first = self._probe(GPU, (layer,), _OTHER, pipelined=pipelined)
            ram = max(
                self._probe(HOST, (layer,), output, pipelined=False) for output in (_OTHER, HOST)
            )
            work[layer] = (other, max(first, other), ram)
        return Load(
            reads=(0, *accumulate(self.reads)),
            sizes=(0, *accumulate(sizes[layer] for layer in facts.layers)),
            work=tuple(work[layer][0] for layer in facts.layers),
            first_work=tuple(work[layer][1] for layer in facts.layers),
            ram_work=tuple(work[layer][2] for layer in facts.layers),
        )

    def _probe(
        self, device: str, layers: Sequence[LayerFacts], output: str, *, pipelined: bool
    ) -> int:
        """The compute buffer of a device with these layers first, while another has all kinds."""
        placement = Placement(
            (GPU, _OTHER),
            (*(device,) * len(layers), *(_OTHER,) * len(self._kinds)),
            output,
            pipelined=pipelined,
        )
        facts = replace(self._facts, layers=(*layers, *self._kinds))
        return compute_bytes(facts, placement, self.settings, device)

    def _inner(self, layer: LayerFacts, *, pipelined: bool) -> int:
        """The compute buffer for a layer on a device that does not have the first one."""
        placement = Placement(
            (_OTHER, GPU), (*(_OTHER,) * len(self._kinds), GPU), _OTHER, pipelined=pipelined
        )
        facts = replace(self._facts, layers=(*self._kinds, layer))
        return compute_bytes(facts, placement, self.settings, GPU)


def settings_of(facts: GgufFacts, shape: Shape) -> ContextSettings:
    """As a split's engine is told: GPUs do not help with layers in RAM (``--no-op-offload``)."""
    return ContextSettings(
        context=shape.context * shape.slots,
        slots=shape.slots,
        ubatch=micro_batch(facts, shape.context),
        op_offload=False,
    )
