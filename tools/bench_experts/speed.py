"""How fast shards of one size after the other decode, in rounds, since the machine is noisy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from meshd.engine.build import EngineBuild
from tools.bench_experts.tool import said

_ROUNDS = 5
_TOKENS = 128


async def tokens_s(models: Sequence[Path], build: EngineBuild) -> list[float]:
    """Of each on one processor: the median of its rounds. :raises UserError: it cannot be run."""
    found: list[list[float]] = [[] for _ in models]
    for turn in range(_ROUNDS):
        # Forth and back, so that none always runs after the same.
        order = list(zip(models, found, strict=True))
        for model, own in order if turn % 2 else reversed(order):
            own.append(await _once(model, build))
    return [median(own) for own in found]


async def _once(model: Path, build: EngineBuild) -> float:
    words = ("-p", "0", "-n", str(_TOKENS), "-t", "1", "-r", "1", "-o", "json")
    out = await said(build, "llama-bench", "-m", model, *words, "-dev", "none", "-ngl", "0")
    return float(json.loads(out)[0]["avg_ts"])
