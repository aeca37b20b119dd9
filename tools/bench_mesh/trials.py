"""The trials, the same for every kind of fleet."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tools.bench_mesh.fleet import Fleet, go_on, node_name, stop
from tools.bench_mesh.network import Network
from tools.bench_mesh.observed import ALIVE, GONE, Sight
from tools.bench_mesh.process_cost import cpu_s, memory

_START_AT_ONCE = 4
START_APART_S = 0.5
_WHOLE_S = 180.0
_CHANGE_S = 20.0
_MISSED_S = 60.0

Seen = Callable[[Sight], bool]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried. :ivar idle_s: of quiet that is measured, after `settle_s` that is not."""

    settle_s: float
    idle_s: float
    changes: int
    joins: int
    kills: int
    stops: int


@dataclass
class Figures:
    """Of one fleet at one size. Times in seconds, one a trial; None: not seen by all in time.

    :ivar start_s: from the first node's start until all views were whole; `START_APART_S` between
        one and the next.
    :ivar sent_bytes_s: per node, Ethernet frames. :ivar cpu: per node, of one core.
    :ivar load: the machine's load average, before and after the quiet time.
    """

    fleet: str
    nodes: int
    record_bytes: int = 0
    start_s: float | None = None
    sent_bytes_s: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    pss_bytes: list[int] = field(default_factory=list)
    load: tuple[float, float] = (0.0, 0.0)
    changed_s: list[float | None] = field(default_factory=list)
    joined_s: list[float | None] = field(default_factory=list)
    known_s: list[float | None] = field(default_factory=list)
    left_s: list[float | None] = field(default_factory=list)
    killed_suspect_s: list[float | None] = field(default_factory=list)
    killed_dead_s: list[float | None] = field(default_factory=list)
    stopped_suspect_s: list[float | None] = field(default_factory=list)
    stopped_dead_s: list[float | None] = field(default_factory=list)
    resumed_s: list[float | None] = field(default_factory=list)


def names(ports: Iterable[int]) -> list[str]:
    return [node_name(port) for port in ports]


def note(*words: object) -> None:
    """For whoever waits: these trials take minutes."""
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


async def start_all(
    fleet: Fleet, ports: Iterable[int], apart_s: float = START_APART_S
) -> float | None:
    """Start these nodes, and wait until each sees all.

    :param apart_s: between one and the next.
    :returns: how long that took from the first one's start, None if it never came to that.
    """
    ports = list(ports)
    slots = asyncio.Semaphore(_START_AT_ONCE)

    async def prepare(port: int) -> None:
        async with slots:
            await fleet.prepare(port)

    await asyncio.gather(*map(prepare, ports))
    began = []
    for port in ports:
        began.append(asyncio.create_task(fleet.begin(port)))
        await asyncio.sleep(apart_s)
    first = min(await asyncio.gather(*began))
    whole = await fleet.seen.until(lambda: fleet.seen.exact(names(ports)), _WHOLE_S)
    return fleet.seen.all[-1].at_s - first if whole else None


async def measure(fleet: Fleet, network: Network, nodes: int, effort: Effort) -> Figures:
    """:param network: with a port more than there are nodes, for who joins."""
    figures = Figures(fleet.name, nodes)
    ports = list(range(1, nodes + 1))
    figures.start_s = await start_all(fleet, ports)
    note(fleet.name, nodes, "nodes, whole after", figures.start_s)
    await asyncio.sleep(effort.settle_s * fleet.settles)
    await _idle(fleet, network, figures, effort.idle_s)
    note("idle:", round(statistics.mean(figures.sent_bytes_s)), "B/s per node")
    rng = random.Random(nodes)
    await _changes(fleet, figures, ports, effort.changes, rng)
    await _joins(fleet, figures, ports, effort.joins)
    note("change", figures.changed_s, "join", figures.joined_s, "leave", figures.left_s)
    victims = rng.sample(ports, min(nodes, max(effort.kills, effort.stops)))
    for port in victims[: effort.kills]:
        await _kill(fleet, figures, ports, port)
    note("kill -9", figures.killed_suspect_s, figures.killed_dead_s)
    for port in victims[: effort.stops]:
        await _stop(fleet, figures, ports, port)
    note("SIGSTOP", figures.stopped_suspect_s, figures.stopped_dead_s, figures.resumed_s)
    figures.record_bytes = fleet.record_bytes
    return figures


async def _idle(fleet: Fleet, network: Network, figures: Figures, for_s: float) -> None:
    pids = fleet.pids
    load = os.getloadavg()[0]
    began, sent = time.monotonic(), network.sent_bytes()
    ran = {port: cpu_s(pid) for port, pid in pids.items()}
    await asyncio.sleep(for_s)
    took_s, after = time.monotonic() - began, network.sent_bytes()
    figures.sent_bytes_s = [(after[port] - sent[port]) / took_s for port in pids]
    figures.cpu = [(cpu_s(pid) - ran[port]) / took_s for port, pid in pids.items()]
    figures.load = load, os.getloadavg()[0]
    uses = [memory(pid) for pid in pids.values()]
    figures.rss_bytes = [one.rss_bytes for one in uses]
    figures.pss_bytes = [one.pss_bytes for one in uses]


async def _changes(
    fleet: Fleet, figures: Figures, ports: list[int], count: int, rng: random.Random
) -> None:
    for mark in range(1, count + 1):
        port = rng.choice(ports)
        others = names(one for one in ports if one != port)
        at = await fleet.mark(port, mark)
        figures.changed_s.append(
            await _by_all(fleet, others, port, at, _says(mark), timeout_s=_CHANGE_S)
        )
        await asyncio.sleep(rng.uniform(0.2, 1.0))


def _says(mark: int) -> Seen:
    return lambda sight: sight.mark == mark


def _is_alive(sight: Sight) -> bool:
    return sight.status == ALIVE


def _is_missed(sight: Sight) -> bool:
    return sight.status != ALIVE


def _is_gone(sight: Sight) -> bool:
    return sight.status == GONE


async def _joins(fleet: Fleet, figures: Figures, ports: list[int], count: int) -> None:
    newcomer = len(ports) + 1
    everybody = names([*ports, newcomer])
    seen = fleet.seen
    for _ in range(count):
        await fleet.prepare(newcomer)
        at = await fleet.begin(newcomer)
        whole = await seen.until(lambda: seen.exact(everybody, names([newcomer])), _WHOLE_S)
        figures.joined_s.append(
            max(sight.at_s for sight in seen.now[node_name(newcomer)].values()) - at
            if whole
            else None
        )
        figures.known_s.append(await _by_all(fleet, names(ports), newcomer, at, _is_alive))
        await seen.until(lambda: seen.exact(everybody), _WHOLE_S)
        await asyncio.sleep(2.0)
        at = await fleet.leave(newcomer)
        figures.left_s.append(await _by_all(fleet, names(ports), newcomer, at, _is_gone))
        await asyncio.sleep(1.0)


async def _kill(fleet: Fleet, figures: Figures, ports: list[int], port: int) -> None:
    others = names(one for one in ports if one != port)
    at = await fleet.kill(port)
    if fleet.suspects:
        figures.killed_suspect_s.append(await _by_all(fleet, others, port, at, _is_missed))
    figures.killed_dead_s.append(await _by_all(fleet, others, port, at, _is_gone))
    await fleet.prepare(port)
    await fleet.begin(port)
    await fleet.seen.until(lambda: fleet.seen.exact(names(ports)), _WHOLE_S)
    await asyncio.sleep(3.0)


async def _stop(fleet: Fleet, figures: Figures, ports: list[int], port: int) -> None:
    others = names(one for one in ports if one != port)
    pid = fleet.pids[port]
    at = time.monotonic()
    stop(pid)
    try:
        if fleet.suspects:
            figures.stopped_suspect_s.append(await _by_all(fleet, others, port, at, _is_missed))
        figures.stopped_dead_s.append(await _by_all(fleet, others, port, at, _is_gone))
    finally:
        at = time.monotonic()
        go_on(pid)
    whole = await fleet.seen.until(lambda: fleet.seen.exact(names(ports)), _WHOLE_S)
    figures.resumed_s.append(fleet.seen.all[-1].at_s - at if whole else None)
    await asyncio.sleep(3.0)


async def _by_all(
    fleet: Fleet,
    observers: list[str],
    port: int,
    since_s: float,
    true: Seen,
    timeout_s: float = _MISSED_S,
) -> float | None:
    subject = node_name(port)

    def done() -> bool:
        now = fleet.seen.now
        return all(
            subject in now.get(one, {})
            and now[one][subject].at_s >= since_s
            and true(now[one][subject])
            for one in observers
        )

    await fleet.seen.until(done, timeout_s)
    return fleet.seen.by_all_s(observers, subject, since_s, true)
