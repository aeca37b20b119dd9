"""How much text it takes until the order of a model's experts stands still.

    python -m tools.calibration.stability [MODEL.gguf]

Prints the table of docs/experts.md: rankings from beginnings of the shipped texts beside one from
all of them, and beside one from other texts of the same kinds.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np

from meshd.engine.describe import describe
from meshd.engine.locate import in_root, require
from meshd.experts.imatrix import count_experts
from meshd.experts.imatrix_run import CHUNK_TOKENS
from meshd.experts.ranking import Ranking
from meshd.experts.texts import texts_of
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_facts import read_facts

_ROOT = Path(__file__).resolve().parents[2]
_CHUNKS = (1, 2, 4, 8, 16, 32, 64)


def spearman(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Correlation of the ranks, of equals the mean."""
    ranks = [
        [mean(np.flatnonzero(np.sort(counts) == count)) for count in counts]
        for counts in (one, other)
    ]
    return float(np.corrcoef(*ranks)[0, 1])


def lost(chosen_by: Ranking, judged_by: Ranking, kept: int) -> float:
    """Of the choices that the best so many experts would keep, the share that is lost."""
    shares = []
    for block, order in enumerate(chosen_by.orders):
        if order:
            best = judged_by.mass(block, judged_by.orders[block][:kept])
            shares.append(1 - judged_by.mass(block, order[:kept]) / best)
    return mean(shares)


async def table(model: Path) -> str:
    """In Markdown."""
    build = describe(in_root(_ROOT / ".cache/engine") or require())
    facts = read_facts(model)
    experts = tuple(facts.experts if layer.expert_bytes else 0 for layer in facts.layers)
    kept = facts.experts * 10 // 16
    with tempfile.TemporaryDirectory() as scratch:
        texts = texts_of((), Path(scratch))

        async def counted(paths: tuple[Path, ...], chunks: int) -> Ranking:
            return await count_experts(
                facts.files,
                paths,
                Path(scratch),
                build,
                fingerprint=fingerprint([Path(one) for one in facts.files]),
                experts=experts,
                progress=lambda _: None,
                chunks=chunks,
            )

        ranks = tuple(Path(one.ranks) for one in texts)
        by_chunks = {chunks: await counted(ranks, chunks) for chunks in _CHUNKS}
        everything = by_chunks[_CHUNKS[-1]]
        other = await counted(tuple(Path(one.measures) for one in texts), _CHUNKS[-1])
    lines = [
        f"| tokens | rank correlation with {everything.tokens} tokens: mean, least layer "
        f"| with other texts | choices lost of the best {kept} experts': all, other texts |",
        "|---|---|---|---|",
    ]
    for chunks, ranking in by_chunks.items():
        cells = []
        for reference in (everything, other):
            found = [
                spearman(*layers)
                for layers in zip(ranking.counts, reference.counts, strict=True)
                if layers[0]
            ]
            cells.append(f"{mean(found):.3f}, {min(found):.3f}")
        losses = ", ".join(f"{lost(ranking, one, kept):.2%}" for one in (everything, other))
        lines.append(f"| {len(ranks)} x {chunks * CHUNK_TOKENS} | {' | '.join(cells)} | {losses} |")
    return "\n".join(lines)


if __name__ == "__main__":
    given = sys.argv[1:] or [str(_ROOT / "share/models/tiny-moe.gguf")]
    print(asyncio.run(table(Path(given[0]))))
