"""`make bench-routing`: one table for each number of replicas."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tools.bench_routing import recording, routers
from tools.bench_routing.replay import Outcome, homes, replay
from tools.bench_routing.routers import Router

HERE = "meshd, here"


def ways() -> dict[str, Callable[[int], Router]]:
    """Ways to route, by name; each makes one gateway's router."""
    perfect = routers.sticky()
    return {
        "perfect sticky": lambda _: perfect,
        "meshd": lambda _: routers.Meshd(),
        HERE: lambda _: routers.Meshd(),
        "least loaded": routers.least_loaded,
        "round robin": lambda _: routers.round_robin(),
        "random": routers.at_random,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--record", type=int, metavar="N", help="draw N conversations anew")
    options.add_argument("--seed", type=int, default=4)
    options.add_argument("--utilisation", type=float, default=0.6)
    options.add_argument("--replicas", type=int, nargs="*", default=[2, 4, 8, 16])
    options.add_argument("--slots", type=int, default=4)
    args = options.parse_args()
    if args.record:
        recording.save(recording.draw(args.record, args.seed))
    conversations = recording.load()
    turns = sum(len(one.turns) for one in conversations)
    print(f"{len(conversations)} conversations, {turns} requests, figures 1 s old, 4 gateways")
    print("(here: a gateway on each node, where each conversation keeps to its own)")
    print()
    print(
        "| replicas | router | slots used | hit rate | of perfect | max / mean load "
        "| first token p50 | p99 | remapped |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for count in args.replicas:
        best = 0.0
        for name, make in ways().items():
            outcome = replay(
                conversations,
                make,
                replicas=count,
                slots=args.slots,
                utilisation=args.utilisation,
                here=name == HERE,
            )
            best = best or outcome.hit_rate
            moved = remapped(ways()[name](0), len(conversations), count)
            print(_row(count, name, outcome, best, moved))


def remapped(router: Router, conversations: int, replicas: int) -> float:
    """Of the conversations at home on nodes that stay, those that move when another one leaves."""
    everyone = list(range(replicas))
    before = homes(router, conversations, replicas, everyone)
    after = homes(router, conversations, replicas, everyone[1:])
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one != 0]
    return sum(one != other for one, other in pairs) / max(1, len(pairs))


def _row(count: int, name: str, outcome: Outcome, best: float, moved: float) -> str:
    return (
        f"| {count} | {name} | {outcome.utilisation:.0%} | {outcome.hit_rate:.3f} "
        f"| {outcome.hit_rate / best:.2f} | {outcome.imbalance:.2f} "
        f"| {outcome.quantile_s(0.5):.2f} s | {outcome.quantile_s(0.99):.2f} s | {moved:.0%} |"
    )


if __name__ == "__main__":
    main()
