"""What a shard loses, chunk by chunk, so that two of them can be compared on the same text. Pure.

A chunk is 512 tokens, of which llama-perplexity judges the last 255. What neighbouring tokens lose
hangs together; standard errors are therefore over chunks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Chunk, perplexity, logarithm of its ratio, KL, RMS of the change of probability, top-1; each with
# how far it may be off, which may be no number.
_FIGURE = r" +(-?\d+\.\d+) ± +\S+"
_ROW = re.compile(rf" *(\d+){_FIGURE}{_FIGURE}{_FIGURE}{_FIGURE} %{_FIGURE} %\s*")


@dataclass(frozen=True, slots=True)
class Chunk:
    """:ivar top1: share of tokens for which shard and model agree. :ivar log_ratio: of the
    perplexities. :ivar kl: in nats.
    """

    top1: float
    log_ratio: float
    kl: float


Loss = Mapping[str, tuple[Chunk, ...]]
"""By domain; the same chunks of the same texts for every shard."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """:ivar error: standard error of the mean, over chunks."""

    mean: float
    error: float


class LostError(ValueError):
    """Chunks are missing: llama-perplexity may leave its last lines unsaid on a busy machine."""


def chunks_of(said: str, chunks: int) -> tuple[Chunk, ...]:
    """From the output of ``llama-perplexity --kl-divergence``, whose rows are means of all chunks
    up to each.

    :raises LostError: there are not so many.
    """
    rows = [(0.0, 0.0, 0.0)]
    for line in said.splitlines():
        found = _ROW.fullmatch(line)
        if found and int(found[1]) == len(rows):
            rows.append((float(found[6]) / 100, float(found[3]), float(found[4])))
    if len(rows) != chunks + 1:
        raise LostError(f"{len(rows) - 1} of {chunks} chunks")
    return tuple(
        Chunk(*(n * now - (n - 1) * then for now, then in zip(rows[n], rows[n - 1], strict=True)))
        for n in range(1, chunks + 1)
    )


def estimate(values: Sequence[float]) -> Estimate:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, math.inf)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(variance / len(values)))


def of_all(loss: Loss) -> tuple[Chunk, ...]:
    return tuple(chunk for domain in sorted(loss) for chunk in loss[domain])


def top1(loss: Loss) -> Estimate:
    return estimate([chunk.top1 for chunk in of_all(loss)])


def perplexity_ratio(loss: Loss) -> float:
    return math.exp(estimate([chunk.log_ratio for chunk in of_all(loss)]).mean)


def kl(loss: Loss) -> float:
    return estimate([chunk.kl for chunk in of_all(loss)]).mean


def gain(one: Loss, others: Sequence[Loss]) -> Estimate:
    """In top-1, over the mean of the others, chunk by chunk."""
    columns = zip(of_all(one), *map(of_all, others), strict=True)
    return estimate([mine.top1 - _mean(chunk.top1 for chunk in rest) for mine, *rest in columns])


def averaged(losses: Sequence[Loss]) -> Loss:
    """As of a shard that loses in each chunk what these do on average."""
    return {
        domain: tuple(
            Chunk(
                _mean(chunk.top1 for chunk in same),
                _mean(chunk.log_ratio for chunk in same),
                _mean(chunk.kl for chunk in same),
            )
            for same in zip(*(loss[domain] for loss in losses), strict=True)
        )
        for domain in losses[0]
    }


def _mean(values: Iterable[float]) -> float:
    known = tuple(values)
    return sum(known) / len(known)


def points(one: Estimate) -> str:
    """Percentage points: ``+1.23 ± 0.45``."""
    return f"{100 * one.mean:+.2f} ± {100 * one.error:.2f}"


def percent(one: Estimate) -> str:
    return f"{100 * one.mean:.1f} ± {100 * one.error:.1f}"
