"""What was found broken in a run, and how much is borne with before something counts as broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    at_s: float
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.at_s:10.3f} s  {self.rule}: {self.text}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """:ivar settle_s: after which views must be right.

    :ivar suspect_s: for how long one that is well may be suspected for a lost ping, and for
        ``blink_s`` be missed altogether.
    :ivar served_s: beside its load, for a model that could be served: detection, grace, burial,
        claim, a pass of the planner, and one lost message made good by anti-entropy.
    :ivar starts_per_cause: engine starts a blow, a shift of demand, or a failed load may cause.
    :ivar no_false_death: nobody who lives may be buried: where nothing but crashes happens.
    :ivar nothing_lost: no message is lost or late, so that a claim that nobody heard is no excuse.
    """

    settle_s: float = 15.0
    suspect_s: float = 20.0
    blink_s: float = 3.0
    served_s: float = 30.0
    starts_per_cause: float = 3.0
    no_false_death: bool = False
    nothing_lost: bool = False


class Findings:
    """:ivar found: all violations, at most a few of each rule. ``counts``: how many, by rule."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.found: list[Violation] = []
        self.counts: Counter[str] = Counter()

    def fail(self, rule: str, text: str) -> None:
        self.counts[rule] += 1
        if self.counts[rule] <= 5:
            self.found.append(Violation(self._now(), rule, text))
