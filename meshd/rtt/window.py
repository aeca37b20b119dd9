"""Round trips to one address over the last samples: rises as well as falls, and is bounded."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_SAMPLES = 20
MAX_AGE_S = 7200.0
MAX_RTT_MS = 10_000.0

_SHARE = 0.2
_FLOOR_MS = 2.0
_DEVIATIONS = 3.0
# So many in a row on the other side of what went before are a new path, not noise.
_CHANGE_RUN = 5


class Source(StrEnum):
    """PING: an echo of ours. TCP: the kernel's own measurement of a connection."""

    PING = "ping"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class Sample:
    """:ivar at_s: monotonic."""

    at_s: float
    rtt_ms: float
    source: Source = Source.PING


@dataclass(frozen=True, slots=True)
class RttWindow:
    """:ivar age_s: of the newest sample. :ivar samples: how many the figures stand on."""

    min_ms: float
    median_ms: float
    p95_ms: float
    age_s: float
    samples: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Oldest first, at most `MAX_SAMPLES`."""

    kept: tuple[Sample, ...] = ()

    def add(self, sample: Sample) -> Samples:
        """With one more, the oldest leaving; impossible values are passed over.

        Once a run of samples lies beyond all noise of those before it, these leave at once: the
        path has changed, and a minimum that nobody can reach any more would be a lie.
        """
        if not 0.0 <= sample.rtt_ms <= MAX_RTT_MS:
            return self
        kept = (*self.at(sample.at_s).kept, sample)[-MAX_SAMPLES:]
        older, run = kept[:-_CHANGE_RUN], kept[-_CHANGE_RUN:]
        if older and _all_beyond(run, Samples(older)):
            kept = run
        return replace(self, kept=kept)

    def at(self, now_s: float) -> Samples:
        """Without those that are too old by now."""
        if not self.kept or self.kept[0].at_s >= now_s - MAX_AGE_S:
            return self
        return Samples(tuple(one for one in self.kept if one.at_s >= now_s - MAX_AGE_S))

    def window(self, now_s: float) -> RttWindow | None:
        """None when there is no sample. p95 by nearest rank: of 20, the second largest."""
        kept = self.at(now_s).kept
        if not kept:
            return None
        ordered = sorted(one.rtt_ms for one in kept)
        rank = -(-95 * len(ordered) // 100)
        return RttWindow(
            min_ms=ordered[0],
            median_ms=statistics.median(ordered),
            p95_ms=ordered[rank - 1],
            age_s=max(0.0, now_s - max(one.at_s for one in kept)),
            samples=len(ordered),
        )

    def expects(self, rtt_ms: float) -> bool:
        """Whether this value says nothing new: within the noise around the median."""
        if not self.kept:
            return False
        values = [one.rtt_ms for one in self.kept]
        return abs(rtt_ms - statistics.median(values)) <= _slack_ms(values)

    def pinged(self) -> bool:
        return any(one.source is Source.PING for one in self.kept)


def differs(old_ms: float, new_ms: float) -> bool:
    """By more than 20 % and by more than 2 ms: 0.2 to 0.3 ms is noise, so is 100 to 103 ms."""
    return abs(new_ms - old_ms) > max(_FLOOR_MS, _SHARE * old_ms)


def farther(rtt_ms: float) -> float:
    """As far as another may be and not differ: what a newcomer counts as beside those chosen."""
    return max(rtt_ms + _FLOOR_MS, rtt_ms * (1 + _SHARE))


def _slack_ms(values: list[float]) -> float:
    """Three median absolute deviations, which outliers hardly move, and at least what differs."""
    median = statistics.median(values)
    deviation = statistics.median(abs(value - median) for value in values)
    return max(_FLOOR_MS, _SHARE * median, _DEVIATIONS * deviation)


def _all_beyond(run: tuple[Sample, ...], older: Samples) -> bool:
    values = [one.rtt_ms for one in older.kept]
    median, slack = statistics.median(values), _slack_ms(values)
    return all(one.rtt_ms > median + slack for one in run) or all(
        one.rtt_ms < median - slack for one in run
    )
