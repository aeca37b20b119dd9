"""The comparison as a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from statistics import median

from meshd.engine.build import EngineBuild
from meshd.planner.memory import DeviceMemory
from tools.memory_table.oracle import MIB, Reported

_INTRODUCTION = """\
# Predicted and real memory

Made by `make bench-memory` (`python -m tools.memory_table`); do not edit.

meshd predicts what an engine takes on each device from the GGUF header alone
(`meshd/planner/memory.py`). Here that is compared with the engine's own reckoning, for files with
the true tensors, types and sizes of known models, in which the data are holes. `llama-fit-params
--fit-print` builds the real graphs for them without loading; the GPUs are `ggml-rpc-server`s on
loopback, which the engine treats as any device. *Real load* is a llama-server that loaded the
model, shortened to a few layers: it wants logits for one token a slot, where llama-fit-params
reckons with a whole batch, so its compute buffer is smaller.

A real GPU also works on the weights that lie in RAM when a batch is large, and holds a copy of one
tensor meanwhile (`--op-offload`). RPC devices do not, so that part is not in this table. With
Debian's Vulkan backend on llvmpipe, 8192 tokens, llama-fit-params reported for the GPU's compute
buffer, and meshd predicted: Qwen3 30B-A3B with 10 layers on the GPU 204 and 200 MiB, with the
experts of 20 layers in RAM 176 and 200 MiB; Llama 3.2 3B with 10 layers 102 and 106 MiB
(measured by hand, 2026-11-23).

Not in the engine's figures nor in ours: what the driver takes (a CUDA context is some 300 to
500 MiB; the reserve is for that), the prompt cache (`--cache-ram`), and the repacked copy of
weights on a CPU, of whose source pages the kernel lets go.
"""


@dataclass(frozen=True, slots=True)
class Row:
    model: str
    placement: str
    settings: str
    ours: DeviceMemory
    theirs: Reported

    @property
    def error(self) -> float:
        """Of the device's total, as a share; the engine rounds each of three down to 1 MiB."""
        return self.ours.engine_bytes / max(self.theirs.total_bytes, 1) - 1


def worst_line(rows: Sequence[Row]) -> str:
    if not rows:
        return "no rows"
    errors = [abs(row.error) for row in rows]
    beyond = sum(error > 0.05 for error in errors)
    models = len({row.model.removesuffix("-shallow") for row in rows})
    return (
        f"{models} models, {len(rows)} devices compared: median error {median(errors):.2%}, "
        f"worst {max(errors):.2%}, {beyond} beyond 5 %"
    )


def render(rows: Sequence[Row], failures: Sequence[str], build: EngineBuild) -> str:
    lines = [_INTRODUCTION, f"**{worst_line(rows)}.**", ""]
    lines.append(
        f"{datetime.now(UTC):%Y-%m-%d}, llama.cpp {build.version} (b{build.build}), "
        f"ggml {build.ggml}, on {_processor()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.machine()}."
    )
    if failures:
        lines += ["", "What the engine refused:", "", *(f"* {failure}" for failure in failures)]
    lines += ["", *_summary(rows), "", "## Every comparison", "", *_table(rows), ""]
    return "\n".join(lines)


def _summary(rows: Sequence[Row]) -> Iterator[str]:
    yield "| model | compared | median error | worst error | where |"
    yield "|---|---:|---:|---:|---|"
    for model, group in groupby(rows, key=lambda row: row.model):
        mine = list(group)
        worst = max(mine, key=lambda row: abs(row.error))
        middle = median(abs(row.error) for row in mine)
        where = f"{worst.placement}, {worst.theirs.device}; {worst.settings}"
        yield f"| {model} | {len(mine)} | {middle:.2%} | {worst.error:+.2%} | {where} |"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "MiB, as weights + KV + compute."
    yield ""
    yield "| model | placement | settings | device | engine | meshd | error |"
    yield "|---|---|---|---|---:|---:|---:|"
    for row in rows:
        theirs, ours = row.theirs, row.ours
        yield (
            f"| {row.model} | {row.placement} | {row.settings} | {theirs.device} "
            f"| {_sum(theirs)} | {_sum(ours)} | {row.error:+.2%} |"
        )


def _sum(memory: DeviceMemory | Reported) -> str:
    parts = (memory.weights_bytes, memory.kv_bytes, memory.compute_bytes)
    return " + ".join(f"{part / MIB:.0f}" for part in parts)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "an unnamed processor"
