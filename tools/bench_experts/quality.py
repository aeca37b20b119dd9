"""What is lost by how many experts are kept, and by how they are chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from meshd.experts.most_chosen import most_chosen
from meshd.experts.ranking import Ranking
from meshd.experts.shard_writer import shard_bytes
from tools.bench_experts import figures
from tools.bench_experts.figures import Estimate, Loss
from tools.bench_experts.halves import MODEL
from tools.bench_experts.lab import Lab
from tools.bench_experts.rankings import global_ranking, random_ranking
from tools.bench_experts.speed import tokens_s

SHARES = (1.0, 0.75, 0.62, 0.5, 0.38, 0.25)
SEEDS = (1, 2, 3)
PER_LAYER, GLOBAL = "per layer", "one for all layers"
RANDOM = f"by lot, mean of {len(SEEDS)}"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to choose experts, at one share. :ivar mass: their share of the choices counted."""

    ranking: str
    mass: float
    loss: Loss


@dataclass(frozen=True, slots=True)
class Row:
    """:ivar ways: per layer first. :ivar speed: tokens/s."""

    share: float
    experts: int
    size_bytes: int
    speed: float
    ways: tuple[Way, ...]

    def behind(self, way: Way) -> Estimate:
        """By how much the ranking per layer is better than this one, in top-1."""
        return figures.gain(self.ways[0].loss, (way.loss,))


async def rows(lab: Lab) -> list[Row]:
    kept = [round(share * lab.anatomy.experts) for share in SHARES]
    ways = await asyncio.gather(*(_ways(lab, experts) for experts in kept))
    selections = [most_chosen(lab.ranking, experts) for experts in kept]
    models = [
        await lab.write(selection, f"kept-{experts}.gguf")
        for selection, experts in zip(selections, kept, strict=True)
    ]
    speeds = await tokens_s(models, lab.build)
    return [
        Row(share, experts, shard_bytes((str(MODEL),), selection), speed, own)
        for share, experts, selection, speed, own in zip(
            SHARES, kept, selections, speeds, ways, strict=True
        )
    ]


async def _ways(lab: Lab, experts: int) -> tuple[Way, ...]:
    real = lab.ranking
    lots = [random_ranking(real, seed) for seed in SEEDS]
    chosen_by: tuple[tuple[str, list[Ranking]], ...] = ((PER_LAYER, [real]),)
    if experts < lab.anatomy.experts:
        chosen_by += ((GLOBAL, [global_ranking(real)]), (RANDOM, lots))
    found = []
    for name, rankings in chosen_by:
        selections = [most_chosen(one, experts) for one in rankings]
        masses = [mass for one in selections for mass in real.masses(one)]
        losses = await lab.losses(selections)
        found.append(Way(name, sum(masses) / len(masses), figures.averaged(losses)))
    return tuple(found)


def shown(found: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| experts kept | MB | tokens/s | ranking | their share of choices | top-1, % "
        "| perplexity ratio | KL, nats | per layer is better by, points of top-1 |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        for way in row.ways:
            first = way is row.ways[0]
            size = f"{row.size_bytes / 1e6:.1f} | {row.speed:.0f}" if first else "|"
            kept = f"{row.share:.0%} ({row.experts})" if first else ""
            behind = "" if first else verdict(row.behind(way))
            lines.append(
                f"| {kept} | {size} | {way.ranking} | {way.mass:.1%} "
                f"| {figures.percent(figures.top1(way.loss))} "
                f"| {figures.perplexity_ratio(way.loss):.3f} | {figures.kl(way.loss):.3f} "
                f"| {behind} |"
            )
    return "\n".join(lines)


def verdict(behind: Estimate) -> str:
    """A lead that is less than twice its standard error is none."""
    if behind.mean > 2 * behind.error:
        return figures.points(behind)
    word = "it is **worse**" if behind.mean < -2 * behind.error else "no clear difference"
    return f"{figures.points(behind)}, {word}"
