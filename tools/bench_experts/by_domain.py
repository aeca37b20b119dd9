"""Does it help to send a conversation to the shard that is best at its domain?

Two ways to deal the experts that are not on every node: by mass, as meshd does, and by domain. And
two things to compare with: the average node, and the one that is best for all domains, which is
better than the average without any knowledge of domains.

Nodes are chosen by what they were measured to lose, as certificates say it; on every other chunk,
and what that brings is measured on the others, so that luck does not count as knowledge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from meshd.experts.ranking import Ranking, Selection
from meshd.planner.shard_plan import ShardPlan, shard_plan
from tools.bench_experts import plans
from tools.bench_experts.figures import (
    Estimate,
    Loss,
    averaged,
    estimate,
    percent,
    points,
    top1,
)
from tools.bench_experts.lab import Lab

MESHES: tuple[Mapping[str, int], ...] = (
    *({"A": 10, "B": 10}, {"A": 8, "B": 8, "C": 8}),
    *plans.MESHES,
)
BY_MASS, BY_DOMAIN = "by mass", "by domain"


@dataclass(frozen=True, slots=True)
class Row:
    """:ivar losses: by node."""

    dealt: str
    rooms: Mapping[str, int]
    losses: Mapping[str, Loss]

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(next(iter(self.losses.values())))

    def best(self, domains: Sequence[str], parity: int | None = None) -> str:
        """Node with the best top-1 on these domains, in all chunks or every other one."""

        def mean(node: str) -> float:
            known = [
                chunk.top1
                for domain in domains
                for at, chunk in enumerate(self.losses[node][domain])
                if parity is None or at % 2 == parity
            ]
            return sum(known) / len(known)

        return max(self.losses, key=mean)

    def over_average(self, domains: Sequence[str]) -> Estimate:
        """In top-1, of choosing by domain."""
        return estimate(
            [
                self.losses[node][domain][at].top1
                - sum(loss[domain][at].top1 for loss in self.losses.values()) / len(self.losses)
                for domain, at, node in self._routed(domains)
            ]
        )

    def over_best(self, domains: Sequence[str]) -> Estimate:
        """Likewise beside the node that is best for all domains."""
        return self.over_best_of(self, domains)

    def over_best_of(self, other: Row, domains: Sequence[str]) -> Estimate:
        """Likewise beside the best one of shards that are dealt otherwise."""
        best = [other.best(other.domains, 1 - parity) for parity in (0, 1)]
        return estimate(
            [
                self.losses[node][domain][at].top1 - other.losses[best[at % 2]][domain][at].top1
                for domain, at, node in self._routed(domains)
            ]
        )

    def _routed(self, domains: Sequence[str]) -> Iterator[tuple[str, int, str]]:
        """Each chunk, and the node that the chunks of the other parity speak for."""
        for domain in domains:
            best = [self.best((domain,), 1 - parity) for parity in (0, 1)]
            for at in range(len(next(iter(self.losses.values()))[domain])):
                yield domain, at, best[at % 2]


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
            found.append(Row(dealt, rooms, dict(zip(selections, losses, strict=True))))
    return found


def shown(found: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| nodes | dealt | domain | top-1 of each node, % | over the average node, points "
        "| over the node that is best for all | over the best of those by mass |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for row in found:
        nodes = "/".join(map(str, row.rooms.values()))
        for at, domain in enumerate(row.domains):
            each = ", ".join(
                f"{name} {percent(top1({domain: loss[domain]}))}"
                for name, loss in row.losses.items()
            )
            begin = f"| {nodes} | {row.dealt}" if at == 0 else "| |"
            lines.append(
                f"{begin} | {domain} | {each} | {points(row.over_average((domain,)))} "
                f"| {points(row.over_best((domain,)))} | |"
            )
        average = averaged(list(row.losses.values()))
        beside = ""
        if row.dealt == BY_DOMAIN:
            by_mass = next(one for one in found if (one.dealt, one.rooms) == (BY_MASS, row.rooms))
            beside = points(row.over_best_of(by_mass, row.domains))
        lines.append(
            f"| | | all | average {percent(top1(average))} "
            f"| {points(row.over_average(row.domains))} "
            f"| {points(row.over_best(row.domains))} | {beside} |"
        )
    return "\n".join(lines)
