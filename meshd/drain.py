"""A node that is to be switched off: it takes nothing new, ends what it has, and stops its engines.

In a mesh the plan of all nodes sees to it: its record says that it is drained, others take over
what it runs, and each engine takes leave when a successor answers, or at once where none can come.
A node that is alone refuses what is new, which is all that it can do. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# After we say so, gateways need a moment to send nothing new.
_LEAST_S = 1.0


@dataclass(frozen=True, slots=True)
class Drain:
    """:ivar since_s: by this boot's monotonic clock. :ivar until_s: so long have answers."""

    since_s: float
    until_s: float

    def over(self, now_s: float) -> bool:
        return now_s >= self.until_s

    def left_s(self, now_s: float) -> float:
        return max(0.0, self.until_s - now_s)


def may_stop(
    drain: Drain | None, models: Iterable[str], busy: Mapping[str, int], now_s: float
) -> frozenset[str]:
    """On a node that is alone: whose engine has nothing left to do, or no time to do it.

    :param busy: requests that engines have, by model.
    """
    if drain is None or now_s - drain.since_s < _LEAST_S:
        return frozenset()
    return frozenset(model for model in models if drain.over(now_s) or not busy.get(model))
