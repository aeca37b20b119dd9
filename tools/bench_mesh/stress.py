"""What must not shake the mesh: busy cores, held-up loops, loss, a cut, all starting at once."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tools.bench_mesh.fleet import node_name
from tools.bench_mesh.meshd_fleet import MeshdFleet
from tools.bench_mesh.network import Network
from tools.bench_mesh.observed import ALIVE, GONE, SUSPECT
from tools.bench_mesh.trials import names, note, start_all

BUSY_PER_CORE = 16
PAUSE_S = 0.5
PAUSE_EVERY_S = 3.0
_SETTLE_S = 10.0
_CUT_S = 20.0
_WHOLE_S = 90.0


@dataclass(frozen=True, slots=True)
class Stress:
    """:ivar deaths: living nodes that somebody took for dead, counted once for each observer;
    ``suspicions`` likewise. None where some were to be missed.
    """

    what: str
    nodes: int
    deaths: int | None
    suspicions: int | None
    remark: str


async def start_at_once(fleet: MeshdFleet, nodes: int) -> Stress:
    """Cold: none has state, all begin in the same moment, and the mesh is none yet."""
    took_s = await start_all(fleet, range(1, nodes + 1), 0.0)
    took = "never one view" if took_s is None else f"one view after {took_s:.1f} s"
    return Stress("all start at once", nodes, None, None, took)


async def busy(fleet: MeshdFleet, nodes: int, for_s: float) -> Stress:
    """:param fleet: of so many nodes, running."""
    await asyncio.sleep(_SETTLE_S)
    since_s = time.monotonic()
    for port in range(1, nodes + 1):
        fleet.pause(port, PAUSE_S, PAUSE_EVERY_S)
    with _busy_cores():
        changes = await _changing(fleet, nodes, for_s)
    for port in range(1, nodes + 1):
        fleet.pause(port, 0.0, PAUSE_EVERY_S)
    await asyncio.sleep(_SETTLE_S)
    what = f"{BUSY_PER_CORE} busy loops per core, event loops held up for 500 ms, {for_s:.0f} s"
    return _found(fleet, what, nodes, since_s, changes)


async def loss(
    fleet: MeshdFleet, network: Network, nodes: int, percent: int, for_s: float
) -> Stress:
    """:param fleet: of so many nodes, running."""
    await asyncio.sleep(_SETTLE_S)
    since_s = time.monotonic()
    network.lose(percent)
    try:
        changes = await _changing(fleet, nodes, for_s)
    finally:
        network.lose(0)
    await asyncio.sleep(_SETTLE_S)
    what = f"{percent} % of the packets to each node lost, {for_s:.0f} s"
    return _found(fleet, what, nodes, since_s, changes)


async def cut(fleet: MeshdFleet, network: Network, nodes: int) -> Stress:
    """:param fleet: of so many nodes, running."""
    await asyncio.sleep(_SETTLE_S)
    halves = [range(1, nodes // 2 + 1), range(nodes // 2 + 1, nodes + 1)]
    seen = fleet.seen
    at = time.monotonic()
    network.split(halves[1])
    missed = await seen.until(lambda: all(_only(fleet, half, GONE) for half in halves), _WHOLE_S)
    suspects_s = max(
        (
            seen.first_s(node_name(one), node_name(other), at, lambda s: s.status != ALIVE)
            or float("inf")
        )
        for half, rest in (halves, halves[::-1])
        for one in half
        for other in rest
    )
    dead_s = seen.all[-1].at_s - at
    await asyncio.sleep(_CUT_S)
    healed = time.monotonic()
    network.heal()
    whole = await seen.until(lambda: seen.exact(names(range(1, nodes + 1))), _WHOLE_S)
    heal_s = seen.all[-1].at_s - healed
    parts = f"halves exact: missed {suspects_s - at:.1f} s, dead {dead_s:.1f} s"
    remark = f"{parts if missed else 'halves never exact'}; " + (
        f"healed, exact after {heal_s:.1f} s" if whole else "healed, never exact"
    )
    return Stress("cut in two halves, then healed", nodes, None, None, remark)


def _only(fleet: MeshdFleet, half: Iterable[int], others: str) -> bool:
    inside = set(names(half))
    return all(
        (one.status == ALIVE) if subject in inside else (one.status == others)
        for observer in inside
        for subject, one in fleet.seen.now.get(observer, {}).items()
    )


async def _changing(fleet: MeshdFleet, nodes: int, for_s: float) -> list[float | None]:
    """Change one record a second. :returns: how long each took to reach all."""
    sent: list[tuple[int, int, float]] = []
    deadline = time.monotonic() + for_s
    mark = 1000
    while time.monotonic() < deadline:
        port = mark % nodes + 1
        sent.append((port, mark, await fleet.mark(port, mark)))
        mark += 1
        await asyncio.sleep(1.0)
    await asyncio.sleep(_SETTLE_S)
    everybody = range(1, nodes + 1)
    return [
        fleet.seen.by_all_s(
            names(one for one in everybody if one != port),
            node_name(port),
            at,
            # A later one says as much.
            lambda sight, mark=mark: sight.mark >= mark,  # type: ignore[misc]
        )
        for port, mark, at in sent
    ]


def _found(
    fleet: MeshdFleet, what: str, nodes: int, since_s: float, changes: list[float | None]
) -> Stress:
    sights = [sight for sight in fleet.seen.all if sight.at_s >= since_s]
    deaths = sum(sight.status == GONE for sight in sights)
    suspicions = sum(sight.status == SUSPECT for sight in sights)
    arrived = [one for one in changes if one is not None]
    note(what, deaths, "deaths", suspicions, "suspicions")
    remark = f"{len(arrived)} of {len(changes)} changes reached all"
    if arrived:
        remark += f", median {statistics.median(arrived):.2f} s, worst {max(arrived):.1f} s"
    return Stress(what, nodes, deaths, suspicions, remark)


@contextmanager
def _busy_cores() -> Iterator[None]:
    pids = []
    try:
        for _ in range(BUSY_PER_CORE * (os.cpu_count() or 1)):
            pid = os.posix_spawn("/bin/sh", ["sh", "-c", "while :; do :; done"], os.environ)
            pids.append(pid)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
