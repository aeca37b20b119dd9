"""What is measured of each proxy, in rounds, and what comes out over all of them."""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tools.bench_gateway import asked
from tools.bench_gateway.request_rate import Rate, measure_rate
from tools.bench_gateway.started import Standing
from tools.bench_gateway.stream_load import Held, Shape, Streamed, measure_held, measure_streams

SMALL_BYTES, LARGE_BYTES = 1024, 400_000
STREAMS = (1, 16, 128)
INTERVAL_MS = 20


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds and counts.

    :ivar rate_s: of each measuring of requests/s, after ``warm_s``.
    :ivar stream_s: of each measuring of streams.
    :ivar held: streams that are open and say nothing, 0 for leaving that out.
    """

    rounds: int
    rate_s: float
    stream_s: float
    held: int
    warm_s: float = 0.3
    small_clients: int = 32
    large_clients: int = 8

    def shape(self, streams: int) -> Shape:
        """One stream alone is short, since only its beginning counts."""
        return Shape(streams, 4 if streams == 1 else 50, INTERVAL_MS)


@dataclass
class Figures:
    """Of one proxy, a value a round. :ivar streamed: by the number of streams."""

    name: str
    small: list[Rate] = field(default_factory=list)
    large: list[Rate] = field(default_factory=list)
    streamed: dict[int, list[Streamed]] = field(default_factory=dict)
    held: Held | None = None

    @property
    def failed(self) -> int:
        rates = sum(one.failed for one in (*self.small, *self.large))
        return rates + sum(one.failed for some in self.streamed.values() for one in some)


async def measure(
    standing: Sequence[Standing], effort: Effort, say: Callable[[str], None]
) -> list[Figures]:
    """Proxy after proxy in short turns, so that a busy moment of the machine hits all of them."""
    found = [Figures(one.proxy.name) for one in standing]
    pairs = [*zip(standing, found, strict=True)]
    for number in range(effort.rounds):
        say(f"round {number + 1} of {effort.rounds}: requests/s")
        for one, figures in pairs:
            figures.small.append(await _rate(one, SMALL_BYTES, effort.small_clients, effort))
            figures.large.append(await _rate(one, LARGE_BYTES, effort.large_clients, effort))
        for streams in STREAMS:
            say(f"round {number + 1} of {effort.rounds}: {streams} streams")
            for one, figures in pairs:
                shape = effort.shape(streams)
                with _no_collector():
                    seen = await measure_streams(one.port, one.tree, shape, effort.stream_s)
                figures.streamed.setdefault(streams, []).append(seen)
        # Nobody is always the one after LiteLLM.
        pairs = pairs[1:] + pairs[:1]
    if effort.held:
        say(f"{effort.held} streams held")
        for one, figures in pairs:
            if one.tree.pid is not None:
                figures.held = await measure_held(one.port, one.tree, effort.held, timeout_s=20.0)
                await asyncio.sleep(0.5)
    return found


async def _rate(one: Standing, size_bytes: int, clients: int, effort: Effort) -> Rate:
    request = asked.plain(size_bytes)
    with _no_collector():
        return await measure_rate(
            one.port, one.tree, request, clients, effort.rate_s, effort.warm_s
        )


class _no_collector:  # noqa: N801 - read like a word in a with statement
    """Its pauses would be taken for the proxy's."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()


def per_core(rates: Sequence[Rate]) -> float | None:
    """Answers for each second of the proxy's CPU time: the median of the rounds."""
    found = [one.answered / one.cpu_s for one in rates if one.cpu_s > 0 and one.answered]
    return statistics.median(found) if found else None


def answered_s(rates: Sequence[Rate]) -> float | None:
    """Answers for each second of the clock, with load, stub and proxy on this machine."""
    return statistics.median(one.answered / one.wall_s for one in rates) if rates else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def over(
    mine: Sequence[Streamed],
    direct: Sequence[Streamed] | None,
    values: Callable[[Streamed], Sequence[float]],
    share: float,
) -> float | None:
    """A percentile of the proxy less that of no proxy in the same round: the rounds' median.

    :param direct: None for the percentile itself.
    """
    found = []
    for one, other in zip(mine, [None] * len(mine) if direct is None else direct, strict=False):
        value = percentile(values(one), share)
        base = 0.0 if other is None else percentile(values(other), share)
        if value is not None and base is not None:
            found.append(value - base)
    return statistics.median(found) if found else None


def cpu_s_per_million(streamed: Sequence[Streamed]) -> float | None:
    """CPU seconds of the proxy for a million tokens, streams' beginnings and ends included."""
    found = [one.cpu_s / one.tokens * 1e6 for one in streamed if one.tokens and one.cpu_s > 0]
    return statistics.median(found) if found else None
