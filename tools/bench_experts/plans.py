"""What it costs in quality that each expert has a home, and that sizes follow the nodes' memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshd.experts.most_chosen import most_chosen
from meshd.experts.ranking import Ranking, Selection
from meshd.planner.shard_plan import shard_plan
from tools.bench_experts import figures
from tools.bench_experts.figures import Estimate, Loss
from tools.bench_experts.lab import Lab
from tools.bench_experts.rankings import global_ranking

MESHES: tuple[Mapping[str, int], ...] = ({"A": 12, "B": 10}, {"A": 12, "B": 10, "C": 8})
OURS, NO_HOMES = "meshd", "each its most chosen"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to divide. :ivar selections: by node. :ivar fits: every node has room for its own."""

    name: str
    selections: Mapping[str, Selection]
    fits: bool = True


@dataclass(frozen=True, slots=True)
class Measured:
    """:ivar homed: share of the choices that some node keeps. :ivar losses: by node, and `masses`:
    mean over the layers, and the least.
    """

    way: Way
    homed: float
    masses: Mapping[str, tuple[float, float]]
    losses: Mapping[str, Loss]


def ways(ranking: Ranking, rooms: Mapping[str, int], experts: int) -> tuple[Way, ...]:
    """Ours first."""
    plan = shard_plan(ranking, rooms, experts=experts)
    least = min(rooms.values())
    fitting = max(
        core for core in range(least + 1) if _original_size(experts, core, len(rooms)) <= least
    )
    found = [
        Way(f"{OURS}: core {max(plan.core)}, {plan.homes} home or more", plan.selections),
        Way(NO_HOMES, {node: most_chosen(ranking, room) for node, room in rooms.items()}),
    ]
    for core, why in ((fitting, "lowered to fit"), (experts // 2, "as it was")):
        selections = original(ranking, tuple(rooms), core)
        fits = all(max(map(len, selections[node])) <= room for node, room in rooms.items())
        name = f"mesh-llm's: one ranking, core {core} ({why})"
        found.append(Way(name, selections, fits))
    return tuple(found)


def original(ranking: Ranking, nodes: Sequence[str], core: int) -> dict[str, Selection]:
    """mesh-llm's: of one ranking for all layers the first ``core`` go to every node, the rest to
    one each in turn, whatever room the nodes have.
    """
    orders = global_ranking(ranking).orders
    return {
        node: tuple(
            tuple(sorted((*order[:core], *order[core + at :: len(nodes)]))) for order in orders
        )
        for at, node in enumerate(nodes)
    }


def _original_size(experts: int, core: int, nodes: int) -> int:
    return core + -(-(experts - core) // nodes)


async def measured(lab: Lab, rooms: Mapping[str, int]) -> list[Measured]:
    found = []
    for way in ways(lab.ranking, rooms, lab.anatomy.experts):
        losses = await lab.losses(way.selections.values())
        kept = {node: lab.ranking.masses(own) for node, own in way.selections.items()}
        unions = zip(*way.selections.values(), strict=True)
        homed = lab.ranking.masses(tuple(tuple(sorted(set().union(*ids))) for ids in unions))
        found.append(
            Measured(
                way,
                sum(homed) / len(homed),
                {node: (sum(one) / len(one), min(one)) for node, one in kept.items()},
                dict(zip(way.selections, losses, strict=True)),
            )
        )
    return found


def beside(one: Measured, other: Measured) -> Estimate:
    """By how much one is better than the other, as the mean of all nodes."""
    return figures.gain(
        figures.averaged(list(one.losses.values())),
        [figures.averaged(list(other.losses.values()))],
    )


def shown(rooms: Mapping[str, int], found: Sequence[Measured]) -> str:
    """Markdown."""
    said = ", ".join(f"{node} {room}" for node, room in rooms.items())
    lines = [
        f"Nodes with room for: {said}.",
        "",
        "| divided by | node | experts | share of choices (worst layer) | top-1, % "
        "| perplexity ratio | choices with a home | all nodes' top-1 beside meshd's, points |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        for at, (node, selection) in enumerate(one.way.selections.items()):
            mass, least = one.masses[node]
            name, homed, better = one.way.name if at == 0 else "", "", ""
            if at == 0:
                homed = f"{one.homed:.1%}"
                better = "" if one is found[0] else figures.points(beside(one, found[0]))
                if not one.way.fits:
                    name += "; does not fit"
            lines.append(
                f"| {name} | {node} | {max(map(len, selection))} | {mass:.1%} ({least:.1%}) "
                f"| {figures.percent(figures.top1(one.losses[node]))} "
                f"| {figures.perplexity_ratio(one.losses[node]):.3f} | {homed} | {better} |"
            )
    return "\n".join(lines)
