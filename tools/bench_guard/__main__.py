"""`make bench-guard`: all figures of one run, in one table."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

from meshd.engine.locate import Place, in_root, require
from tests.wire.guard_harness import (
    OTHER_SECRET,
    TERM,
    Split,
    child,
    free_port,
    identity,
    make_split,
    until,
)
from tools.bench_guard.lane import SHAPES, measure
from tools.bench_guard.rude import be_rude, probes

_OWN_ENGINE = Path(__file__).resolve().parents[2] / ".cache/engine"
_LATE_S = 0.05
_STREAM_TOKENS = 1_000_000


async def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-guard", description=__doc__)
    parser.add_argument("--exchanges", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=9, help="of 256 MiB, for throughput")
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="a tenth of all")
    args = parser.parse_args()
    share = 10 if args.quick else 1
    engine = in_root(_OWN_ENGINE) or require()
    with tempfile.TemporaryDirectory(prefix="bench-guard-") as folder:
        await _speed(
            engine, Path(folder) / "speed", args.exchanges // share, max(3, args.rounds // share)
        )
        await _manners(engine, Path(folder) / "rude", args.probes // share)


async def _speed(engine: Place, folder: Path, exchanges: int, rounds: int) -> None:
    """A stand-in for rpc-server answers, reached directly, by two relays, by both guards."""
    async with AsyncExitStack() as stack:
        split = make_split(engine, folder)
        fronts = {"direct": free_port(), "relays": free_port(), "guards": split.front}
        for name, port in fronts.items():
            await stack.enter_async_context(
                child(folder / f"{name}.log", sys.executable, "-m", "tools.bench_guard.stand_in",
                      str(port))
            )  # fmt: skip
        near, far = free_port(), free_port()
        for port, target in ((far, fronts["relays"]), (near, far)):
            await stack.enter_async_context(
                child(folder / f"relay-{port}.log", sys.executable, "-m",
                      "tools.bench_guard.plain_relay", str(port), str(target))
            )  # fmt: skip
        await stack.enter_async_context(split.member_guard(quiet=True))
        await stack.enter_async_context(split.host_guard(quiet=True))
        await split.wait_host(lambda peer: peer.reached, "the guards to be ready", 30)
        ports = {"direct": fronts["direct"], "two plain relays": near, "both guards": split.local}
        lanes = await asyncio.to_thread(measure, ports, exchanges, rounds)
    direct, _, guards = lanes
    print(f"\nRound trips, {exchanges} of each kind, the ways in turn; ms, p50 (p99)\n")
    print("| what | direct | two plain relays | both guards | the guards add, p50 |")
    print("|---|---|---|---|---|")
    for shape in SHAPES:
        added_s = _quantile(guards.times_s[shape], 50) - _quantile(direct.times_s[shape], 50)
        cells = " | ".join(_times(lane.times_s[shape]) for lane in lanes)
        print(f"| {shape} | {cells} | {added_s * 1000:.3f} |")
    bulk = [statistics.median(lane.bulk_bytes_s) for lane in lanes]
    print(f"\nThroughput, {rounds} rounds of 256 MiB, the ways in turn; median\n")
    print("| direct | two plain relays | both guards | of direct | of the relays |")
    print("|---|---|---|---|---|")
    figures = " | ".join(f"{one / 1e9:.2f} GB/s" for one in bulk)
    print(f"| {figures} | {bulk[2] / bulk[0]:.0%} | {bulk[2] / bulk[1]:.0%} |")
    sys.stdout.flush()


def _times(times_s: list[float]) -> str:
    return f"{_quantile(times_s, 50) * 1000:.3f} ({_quantile(times_s, 99) * 1000:.3f})"


def _quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


async def _manners(engine: Place, folder: Path, count: int) -> None:
    """A real llama-server streams over a real rpc-server while callers are rude."""
    split = make_split(engine, folder)
    stranger = identity(folder / "stranger", OTHER_SECRET)
    rude = probes(split.door, split.local, stranger.tls, split.host.tls, TERM)
    async with AsyncExitStack() as stack:
        rpc = await stack.enter_async_context(split.rpc_server())
        await stack.enter_async_context(split.member_guard(quiet=True))
        await stack.enter_async_context(split.host_guard(quiet=True))
        await split.wait_host(lambda peer: peer.reached, "the guards to be ready", 30)
        llama = await stack.enter_async_context(split.llama("--context-shift"))
        await split.healthy(llama)
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        async with split.stream(_STREAM_TOKENS) as stream:
            await stream.past(100)
            await be_rude(rude, count)
            took_s = loop.time() - begun_s
            rudely = _gaps(stream.at_s)
            ended = stream.ended
        await _free(split)
        async with split.stream(_STREAM_TOKENS) as stream:
            quiet_until_s = loop.time() + took_s
            await until(lambda: loop.time() > quiet_until_s, "the quiet stream", took_s + 60)
            quietly = _gaps(stream.at_s)
        survived = not rpc.ended and not llama.ended and not ended
        connections = rpc.said().count("Accepted client connection")
    print(f"\n{count} rude probes of {len(rude)} kinds in {took_s:.1f} s while tokens stream\n")
    print("| stream | tokens | gap p50 | p99 | longest | later than 50 ms |")
    print("|---|---|---|---|---|---|")
    for name, gaps in (("with probes", rudely), ("without, as long", quietly)):
        late = sum(gap > _LATE_S for gap in gaps)
        print(
            f"| {name} | {len(gaps)} | {_quantile(gaps, 50) * 1000:.2f} ms "
            f"| {_quantile(gaps, 99) * 1000:.2f} ms | {max(gaps) * 1000:.1f} ms | {late} |"
        )
    same = "the same process" if survived else "NOT THE SAME: it or llama-server ended"
    print(f"\nrpc-server: {same}; connections that it saw: {connections}")


async def _free(split: Split) -> None:
    await split.wait_host(lambda peer: peer.oldest_call_s == 0.0, "the stream to end")


def _gaps(at_s: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(at_s)]


if __name__ == "__main__":
    asyncio.run(main())
