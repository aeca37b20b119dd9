"""Does it help to send a conversation to the shard that keeps what its domain chooses?

With nodes of equal room, since of unequal ones the largest is best for everything. A shard is
chosen by the choices on the text that was ranked on, so that luck on the measured text chooses
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshd.experts.ranking import Ranking, Selection
from meshd.planner.shard_plan import ShardPlan, shard_plan
from tools.bench_experts import figures
from tools.bench_experts.figures import Estimate, Loss
from tools.bench_experts.lab import Lab

MESHES: tuple[Mapping[str, int], ...] = ({"A": 10, "B": 10}, {"A": 8, "B": 8, "C": 8})
BY_MASS, BY_DOMAIN = "by mass", "by domain"
# Better than the average node by less than this is not worth any code.
WORTH = 0.005


@dataclass(frozen=True, slots=True)
class Row:
    """:ivar losses: by node. :ivar chosen: node for each domain, the one that keeps most of it."""

    dealt: str
    rooms: Mapping[str, int]
    losses: Mapping[str, Loss]
    chosen: Mapping[str, str]

    def gain(self, domain: str) -> Estimate:
        """In top-1 on a domain: the chosen node over the average one."""
        return figures.gain(
            {domain: self.losses[self.chosen[domain]][domain]},
            [{domain: loss[domain]} for loss in self.losses.values()],
        )

    @property
    def gain_of_all(self) -> Estimate:
        routed = {domain: self.losses[node][domain] for domain, node in self.chosen.items()}
        return figures.gain(routed, list(self.losses.values()))


def dealt_by_domain(
    plan: ShardPlan, ranking: Ranking, counts: Mapping[str, Ranking]
) -> dict[str, Selection]:
    """The plan's core on every node, and the rest where it is preferred: each node stands for some
    of the domains, and takes what these choose more than others do. Each expert has a home.
    """
    nodes = tuple(plan.selections)
    stands = {
        node: [counts[domain] for domain in list(counts)[at :: len(nodes)]]
        for at, node in enumerate(nodes)
    }
    kept: dict[str, list[tuple[int, ...]]] = {node: [] for node in nodes}
    for block, order in enumerate(ranking.orders):
        core, rest = order[: plan.core[block]], order[plan.core[block] :]
        left = {node: len(plan.selections[node][block]) - len(core) for node in nodes}
        score = {
            (node, expert): _preference(stands[node], list(counts.values()), block, expert)
            for node in nodes
            for expert in rest
        }
        taken = _dealt(score, left)
        for node in nodes:
            kept[node].append(tuple(sorted((*core, *taken[node]))))
    return {node: tuple(own) for node, own in kept.items()}


def _preference(
    own: Sequence[Ranking], everyone: Sequence[Ranking], block: int, expert: int
) -> float:
    """How much of its choices come from a node's domains, by the mean of all domains."""

    def mean(known: Sequence[Ranking]) -> float:
        return sum(one.mass(block, (expert,)) for one in known) / len(known)

    return mean(own) / (mean(everyone) or 1.0)


def _dealt(score: Mapping[tuple[str, int], float], left: dict[str, int]) -> dict[str, list[int]]:
    """First a home for each expert, then what is still empty; the strongest preferences first."""
    taken: dict[str, list[int]] = {node: [] for node in left}
    pairs = sorted(score, key=lambda pair: (-score[pair], pair))
    for homes in (1, len(left)):
        for node, expert in pairs:
            having = [own for own in taken.values() if expert in own]
            if left[node] and expert not in taken[node] and len(having) < homes:
                taken[node].append(expert)
                left[node] -= 1
    return taken


async def rows(lab: Lab) -> list[Row]:
    found = []
    for rooms in MESHES:
        plan = shard_plan(lab.ranking, rooms, experts=lab.anatomy.experts)
        for dealt, selections in (
            (BY_MASS, plan.selections),
            (BY_DOMAIN, dealt_by_domain(plan, lab.ranking, lab.counts)),
        ):
            losses = await lab.losses(selections.values())
            chosen = {
                domain: max(selections, key=lambda node: sum(own.masses(selections[node])))
                for domain, own in lab.counts.items()
            }
            found.append(Row(dealt, rooms, dict(zip(selections, losses, strict=True)), chosen))
    return found


def shown(found: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| nodes | dealt | domain | top-1 of each node, % | chosen | gain over the average node, "
        "points |",
        "|---|---|---|---|---|---:|",
    ]
    for row in found:
        nodes = "/".join(map(str, row.rooms.values()))
        for at, (domain, node) in enumerate(row.chosen.items()):
            each = ", ".join(
                f"{name} {figures.percent(figures.top1({domain: loss[domain]}))}"
                for name, loss in row.losses.items()
            )
            begin = f"| {nodes} | {row.dealt}" if at == 0 else "| |"
            lines.append(
                f"{begin} | {domain} | {each} | {node} | {figures.points(row.gain(domain))} |"
            )
        overall = figures.points(row.gain_of_all)
        average = figures.averaged(list(row.losses.values()))
        lines.append(
            f"| | | all | average {figures.percent(figures.top1(average))} | | {overall}, "
            f"{'worth it' if worth(row) else 'not worth it'} |"
        )
    return "\n".join(lines)


def worth(row: Row) -> bool:
    """Whether routing by domain pays: clearly above its error, and above half a point."""
    gain = row.gain_of_all
    return gain.mean > 2 * gain.error and gain.mean > WORTH
