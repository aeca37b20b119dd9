"""`make bench-routing`: ways to choose a replica, on recorded conversations."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from tools.bench_routing import fresh, recording, routers
from tools.bench_routing.replay import Away, Outcome, remapped, replay
from tools.bench_routing.routers import Router

HERE = "meshd, here"
_THIRD_AWAY = Away(0, 1 / 3, 2 / 3)


def ways() -> dict[str, Callable[[int], Router]]:
    """Ways to route, by name; each makes one gateway's router."""
    perfect = routers.sticky()
    return {
        "perfect sticky": lambda _: perfect,
        "meshd": lambda _: routers.Meshd(),
        HERE: lambda _: routers.Meshd(),
        "plain hash": lambda _: routers.plain_hash(),
        "least loaded": routers.least_loaded,
        "round robin": lambda _: routers.round_robin(),
        "random": routers.at_random,
    }


def main() -> None:
    options = argparse.ArgumentParser(prog="make bench-routing", description=__doc__)
    options.add_argument("--record", type=int, metavar="N", help="draw N conversations anew")
    options.add_argument("--seed", type=int, default=4, help="of --record")
    options.add_argument("--utilisation", type=float, default=0.6)
    options.add_argument("--replicas", type=int, nargs="*", default=[2, 4, 8, 16])
    options.add_argument("--slots", type=int, nargs="+", default=[4], help="of replicas in turn")
    options.add_argument(
        "--fresh", type=int, metavar="N", help="instead of the recording: N draws of the same kind"
    )
    args = options.parse_args()
    if args.fresh:
        for line in fresh.table(range(100, 100 + args.fresh)):
            print(line, flush=True)
        return
    if args.record:
        recording.save(recording.draw(args.record, args.seed))
    conversations = recording.load()
    turns = sum(len(one.turns) for one in conversations)
    print(f"{len(conversations)} conversations, {turns} requests, figures 1 s old, 4 gateways")
    print("(here: a gateway on each node, where each conversation keeps to its own)")
    print()
    for count in args.replicas:
        slots = [args.slots[number % len(args.slots)] for number in range(count)]
        for line in _table(conversations, slots, args.utilisation):
            print(line, flush=True)
        print()


def _table(
    conversations: list[recording.Conversation], slots: list[int], utilisation: float
) -> Iterable[str]:
    yield (
        f"| {len(slots)} replicas | slots used | hit rate | of perfect | one away "
        "| max / mean load | first token p50 | p99 | remapped |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    best: Outcome | None = None
    best_away: Outcome | None = None
    for name, make in ways().items():
        here = name == HERE
        whole = replay(conversations, make, slots=slots, utilisation=utilisation, here=here)
        away = None
        # Without one of two, the other would have more than it can do.
        if len(slots) > 2 and not here:
            away = replay(
                conversations,
                ways()[name],
                slots=slots,
                utilisation=utilisation,
                away=_THIRD_AWAY,
            )
        best, best_away = best or whole, best_away or away
        moved = remapped(ways()[name](0), len(conversations), slots)
        yield (
            f"| {name} | {whole.utilisation:.0%} | {whole.hit_rate:.3f} | {_part(whole, best)} "
            f"| {_part(away, best_away)} | {whole.imbalance:.2f} | {whole.quantile_s(0.5):.2f} s "
            f"| {whole.quantile_s(0.99):.2f} s | {moved:.0%} |"
        )


def _part(outcome: Outcome | None, best: Outcome | None) -> str:
    return f"{outcome.hit_rate / best.hit_rate:.3f}" if outcome and best else "-"


if __name__ == "__main__":
    main()
