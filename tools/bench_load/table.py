"""The table of `make bench-load`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.bench_load.__main__ import Load

# As published with mesh-llm's fork of llama.cpp; other machines, other models.
ORIGINAL_LOAD_S = (111, 5)
ORIGINAL_CALLS = (558, 8)


def rows(loads: Sequence[Load], weights: int) -> str:
    """:param weights: bytes of the tensors that lie on rpc-servers."""
    text = _table(
        ("load", "s", "stage", "to it MB", "of all weights", "from it MB", "calls", "round trips"),
        [
            (
                load.name if number == 1 else "",
                f"{load.seconds:.2f}" if number == 1 else "",
                str(number),
                f"{count.to_server_bytes / 1e6:.2f}",
                f"{count.to_server_bytes / weights:.2%}",
                f"{count.to_host_bytes / 1e6:.3f}",
                f"{count.calls.total()}",
                f"{count.replies}",
            )
            for load in loads
            for number, count in enumerate(load.loading, 1)
        ],
    )
    counted = next(load for load in loads if load.token)
    tokens = _table(
        ("a decoded token: stage", "calls", "blocking round trips", "to it B", "from it B"),
        [
            (
                str(number),
                f"{count.calls.total() / counted.tokens:.1f}",
                f"{count.replies / counted.tokens:.1f}",
                f"{count.to_server_bytes / counted.tokens:.0f}",
                f"{count.to_host_bytes / counted.tokens:.0f}",
            )
            for number, count in enumerate(counted.token, 1)
        ],
    )
    return f"{text}\n\n{tokens}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sentences(loads: Sequence[Load], weights: int, seeding_s: float) -> str:
    named = {load.name: load for load in loads}
    cold, seeded = named["no cache"], named["seeded"]
    slow, slow_seeded = named["no cache, 1 Gbit/s"], named["seeded, 1 Gbit/s"]
    first, own = named["just seeded"], named["empty cache"]
    sent = sum(count.to_server_bytes for count in seeded.loading)
    counted = next(load for load in loads if load.token)
    calls = max(count.calls.total() for count in counted.token) / counted.tokens
    return (
        f"\n{weights / 1e9:.2f} GB of weights on {len(seeded.loading)} rpc-servers; the cache was "
        f"seeded in {seeding_s:.1f} s ({weights / seeding_s / 1e6:.0f} MB/s).\n"
        f"Seeded, a load moves {sent / weights:.2%} of them (goal: under 2 %): "
        f"{slow.seconds:.1f} s -> {slow_seeded.seconds:.1f} s where the host has 1 Gbit/s. "
        f"On loopback, where sending costs nothing and one disk serves all: {cold.seconds:.1f} s "
        f"without a cache, {own.seconds:.1f} s where rpc-servers fill one meanwhile -> "
        f"{first.seconds:.1f} s just after seeding, {seeded.seconds:.1f} s with cold files.\n"
        f"A token takes at most {calls:.0f} calls a stage.\n"
        f"Published for mesh-llm's fork: {ORIGINAL_LOAD_S[0]} s -> {ORIGINAL_LOAD_S[1]} s, and "
        f"{ORIGINAL_CALLS[0]} -> {ORIGINAL_CALLS[1]} calls a token (other machines and models)."
    )
