"""Which placements and settings the table compares."""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshd.models.facts import GgufFacts
from meshd.planner.kv import ContextSettings
from meshd.planner.placement import Placement, on_host, split

BATCH = 2048


@dataclass(frozen=True, slots=True)
class Case:
    """:ivar devices: stand-in GPUs. ``gpu_layers`` None is all, ``cpu_moe`` as ``--n-cpu-moe``."""

    name: str
    settings: ContextSettings
    devices: int = 0
    shares: tuple[float, ...] = ()
    gpu_layers: int | None = None
    cpu_moe: int = 0

    def flags(self, endpoints: tuple[str, ...]) -> tuple[str, ...]:
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
