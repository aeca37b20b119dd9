"""The same question of conversations that nothing was tuned to: other draws, loads and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tools.bench_routing import recording, routers
from tools.bench_routing.replay import Outcome, replay

_UTILISATIONS = 0.3, 0.5, 0.7, 0.9
_REPLICAS = 2, 4, 8, 16
_SLOTS = (4,), (1, 2, 4, 8)
_CONVERSATIONS_A_REPLICA = 150


def table(seeds: Sequence[int]) -> Iterable[str]:
    """Lines of one, the worst of all seeds in each figure."""
    yield (
        "| utilisation | replicas | slots | slots used | of perfect, least | max / mean load, most "
        "| of perfect sticky | first token p99 | of perfect sticky |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for utilisation in _UTILISATIONS:
        for count in _REPLICAS:
            for kinds in _SLOTS:
                slots = [kinds[number % len(kinds)] for number in range(count)]
                pairs = [_both(seed, slots, utilisation) for seed in seeds]
                yield (
                    f"| {utilisation} | {count} | {', '.join(map(str, kinds))} "
                    f"| {max(ours.utilisation for ours, _ in pairs):.0%} "
                    f"| {min(ours.hit_rate / best.hit_rate for ours, best in pairs):.3f} "
                    f"| {max(ours.imbalance for ours, _ in pairs):.2f} "
                    f"| {max(best.imbalance for _, best in pairs):.2f} "
                    f"| {max(ours.quantile_s(0.99) for ours, _ in pairs):.1f} s "
                    f"| {max(best.quantile_s(0.99) for _, best in pairs):.1f} s |"
                )


def _both(seed: int, slots: Sequence[int], utilisation: float) -> tuple[Outcome, Outcome]:
    """Our way, and the perfect one."""
    conversations = recording.draw(_CONVERSATIONS_A_REPLICA * len(slots), seed)
    perfect = routers.sticky()
    ours, best = (
        replay(conversations, make, slots=slots, utilisation=utilisation, seed=seed)
        for make in (lambda _: routers.Meshd(), lambda _: perfect)
    )
    return ours, best
