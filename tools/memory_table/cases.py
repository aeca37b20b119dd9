"""Which placements and settings the table compares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from meshd.models.facts import GgufFacts
from meshd.planner.kv import ContextSettings
from meshd.planner.placement import HOST, Placement, on_host, pipeline, split
from meshd.units.flags import OUTPUT_ON_CPU

BATCH = 2048


@dataclass(frozen=True, slots=True)
class Split:
    """A model over several nodes, told to the engine as `meshd.units.split_layout` does.

    :ivar shares: of the blocks, for each device; what remains is in the host's RAM.
    :ivar own_gpu: the last device stands in for a GPU of the host's, which has the output layer.
    """

    shares: tuple[float, ...]
    own_gpu: bool = False

    def placement(self, facts: GgufFacts) -> Placement:
        blocks = self._blocks(facts)
        names = [f"RPC{number}" for number in range(len(blocks))]
        return pipeline(
            facts,
            len(facts.layers) - sum(blocks),
            list(zip(names, blocks, strict=True)),
            output=names[-1] if self.own_gpu else HOST,
        )

    def flags(self, facts: GgufFacts, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        blocks = self._blocks(facts)
        told = (*blocks[:-1], blocks[-1] + 1)
        return (
            *("--rpc", ",".join(endpoints[: len(blocks)])),
            *("--device", ",".join(f"RPC{number}" for number in range(len(blocks)))),
            *("--gpu-layers", str(sum(told)), "--tensor-split", ",".join(map(str, told))),
            *(() if self.own_gpu else ("--override-tensor", OUTPUT_ON_CPU)),
        )

    def _blocks(self, facts: GgufFacts) -> tuple[int, ...]:
        ends = [
            round(sum(self.shares[: i + 1]) * len(facts.layers)) for i in range(len(self.shares))
        ]
        return tuple(end - start for start, end in pairwise((0, *ends)))


@dataclass(frozen=True, slots=True)
class Case:
    """:ivar devices: stand-in GPUs. ``gpu_layers`` None is all, ``cpu_moe`` as ``--n-cpu-moe``.

    :ivar split: over nodes, instead of all that.
    """

    name: str
    settings: ContextSettings
    devices: int = 0
    shares: tuple[float, ...] = ()
    gpu_layers: int | None = None
    cpu_moe: int = 0
    split: Split | None = None

    def flags(self, facts: GgufFacts, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        if self.split:
            return self.split.flags(facts, endpoints)
        if not self.devices:
            return ("--device", "none")
        layers = "all" if self.gpu_layers is None else str(self.gpu_layers)
        chosen = ["--rpc", ",".join(endpoints[: self.devices]), "--gpu-layers", layers]
        if self.shares:
            chosen += ["--tensor-split", ",".join(map(str, self.shares))]
        if self.cpu_moe:
            chosen += ["--n-cpu-moe", str(self.cpu_moe)]
        return tuple(chosen)

    def placement(self, facts: GgufFacts) -> Placement:
        if self.split:
            return self.split.placement(facts)
        if not self.devices:
            return on_host(facts)
        return split(
            facts,
            [f"RPC{number}" for number in range(self.devices)],
            proportions=self.shares,
            gpu_layers=self.gpu_layers,
            n_cpu_moe=self.cpu_moe,
        )


_ONE = ContextSettings(8192, 1, batch=BATCH, outputs=BATCH, op_offload=False)
_FOUR = replace(_ONE, context=32768, slots=4)
_Q8 = replace(_FOUR, key_type="q8_0", value_type="q8_0")

_CASES = (
    Case("host", _ONE),
    Case("host", _FOUR),
    Case("host", replace(_ONE, flash_attention=False, slots=2)),
    Case("one GPU", _ONE, 1),
    Case("one GPU", _Q8, 1),
    Case("one GPU", replace(_ONE, ubatch=1024), 1),
    Case("one GPU, 10 layers", _ONE, 1, gpu_layers=10),
    Case("two GPUs 3:2", _ONE, 2, (3, 2)),
    Case("two GPUs 1:1", _Q8, 2, (1, 1)),
    Case("a node lends 60 %", _ONE, split=Split((0.6,))),
    Case("two nodes lend all", _Q8, split=Split((0.5, 0.5))),
    Case("two nodes lend 70 %", _FOUR, split=Split((0.3, 0.4))),
    Case("a node lends 60 %, GPU", _ONE, split=Split((0.6, 0.4), own_gpu=True)),
)
_MIXED = (Case("one GPU", replace(_ONE, key_type="q8_0", value_type="q5_1"), 1),)
_EXPERTS = (
    Case("one GPU, experts of 20 in RAM", _ONE, 1, cpu_moe=20),
    Case("one GPU, all experts in RAM", _Q8, 1, cpu_moe=999),
)
_SLIDING = (Case("one GPU, full SWA", replace(_FOUR, swa_full=True), 1),)

# llama-server's own way: logits for one token a slot, not for the whole batch.
LOADS = (
    ContextSettings(4096, 4),
    ContextSettings(4096, 4, unified=True),
)


def cases(facts: GgufFacts) -> tuple[Case, ...]:
    return (
        *_CASES,
        *(() if facts.mla_key_length else _MIXED),  # one cache has one type
        *(_EXPERTS if facts.moe else ()),
        *(_SLIDING if facts.sliding_window else ()),
    )


def described(settings: ContextSettings) -> str:
    words = [f"{settings.context} tokens", f"{settings.slots} slots"]
    if settings.slots == 1:
        words[-1] = "1 slot"
    if settings.unified:
        words.append("unified")
    if (settings.key_type, settings.value_type) != ("f16", "f16"):
        words.append(f"{settings.key_type}/{settings.value_type}")
    if not settings.flash_attention:
        words.append("no flash attention")
    if settings.ubatch != 512:
        words.append(f"ubatch {settings.ubatch}")
    return ", ".join(words)
