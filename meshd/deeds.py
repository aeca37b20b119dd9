"""What this node does for the mesh, remembered from one pass to the next: its assignments, how
long each has stood, and how busy its engines are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from meshd.gateway.traffic import ModelTraffic, TrafficReport
from meshd.mesh.demand import DemandCounter
from meshd.mesh.record import Assignment, ModelLoad, Stage
from meshd.planner.claims import Engine, Own

# After it says so, others need a moment to hear that an engine takes nothing new.
_DRAIN_LEAST_S = 1.0
_DRAIN_MOST_S = 60.0
_FIRST_MOST = 10


@dataclass(frozen=True, slots=True)
class EngineNow:
    """One of this node's engines.

    :ivar detail: why it failed, or "". :ivar progress: of loading, 0 to 1.
    """

    engine: Engine
    detail: str = ""
    progress: float = 0.0


@dataclass(frozen=True, slots=True)
class _Deed:
    """:ivar since_s: monotonic, when the assignment came to its stage."""

    assignment: Assignment
    since_s: float


_ABSENT = EngineNow(Engine.ABSENT)


class Deeds:
    """:param clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deeds: dict[str, _Deed] = {}
        self._terms: dict[str, int] = {}
        self._traffic: dict[str, ModelTraffic] = {}
        self._boot = ""

    @property
    def terms(self) -> Mapping[str, int]:
        """The highest term used, by model."""
        return self._terms

    def own(self, engines: Mapping[str, EngineNow]) -> tuple[Own, ...]:
        """The assignments as they stand now. Engines that nobody assigned outlived an earlier
        life of ours and are taken up.
        """
        now_s = self._clock()
        for model, now in engines.items():
            if model not in self._deeds and now.engine in (Engine.STARTING, Engine.ANSWERS):
                term = self._terms[model] = self._terms.get(model, 0) + 1
                adopted = Assignment(model, "", Stage.LOADING, term)
                self._deeds[model] = _Deed(adopted, now_s)
        return tuple(
            Own(
                deed.assignment,
                stage_s=now_s - deed.since_s,
                engine=engines.get(model, _ABSENT).engine,
                progress=engines.get(model, _ABSENT).progress,
                detail=engines.get(model, _ABSENT).detail,
            )
            for model, deed in self._deeds.items()
        )

    def took(self, assignments: tuple[Assignment, ...]) -> None:
        """These are the assignments from now on."""
        now_s = self._clock()
        before, self._deeds = self._deeds, {}
        for one in assignments:
            old = before.get(one.model)
            same = old is not None and old.assignment.stage is one.stage
            self._deeds[one.model] = _Deed(one, old.since_s if old and same else now_s)
            self._terms[one.model] = max(one.term, self._terms.get(one.model, 0))

    def drained(self, until_s: float | None = None) -> frozenset[str]:
        """Those that are being given up and have nothing left to do, or no time to do it.

        :param until_s: monotonic; how long answers get where the whole node is drained.
        """
        now_s = self._clock()

        def over(deed: _Deed) -> bool:
            return now_s >= (deed.since_s + _DRAIN_MOST_S if until_s is None else until_s)

        return frozenset(
            model
            for model, deed in self._deeds.items()
            if deed.assignment.stage is Stage.DRAINING
            and now_s - deed.since_s >= _DRAIN_LEAST_S
            and (not self._busy(model) or over(deed))
        )

    def busy(self) -> dict[str, int]:
        """Requests that this node's engines have, by model, as its gateway last said."""
        return {
            model: seen.in_flight for model, seen in self._traffic.items() if seen.in_flight > 0
        }

    def count(self, report: TrafficReport, demand: DemandCounter) -> bool:
        """Add what the gateway saw since its last report to what was asked of this node.

        :returns: whether somebody asked for what nobody serves.
        """
        now_s = self._clock()
        missed = False
        # The first report of an old gateway tells of days, not of this moment.
        most = _FIRST_MOST if not self._boot else None
        if report.boot != self._boot:
            self._boot, self._traffic = report.boot, {}
        for one in report.models:
            last = self._traffic.get(one.model, ModelTraffic(one.model))
            missed = missed or one.misses > last.misses
            demand.count(
                one.model,
                requests=_more(one.requests, last.requests, most),
                tokens=_more(one.completion_tokens, last.completion_tokens, most),
                misses=_more(one.misses, last.misses, most),
                now=now_s,
            )
        self._traffic = {one.model: one for one in report.models}
        return missed

    def load(self) -> tuple[ModelLoad, ...]:
        """How busy the engines are, in steps: others need no more to choose, and hear less."""
        return tuple(
            ModelLoad(
                model,
                busy=_step(seen.in_flight - seen.waiting),
                waiting=_step(seen.waiting),
                tokens_s=float(_step(int(seen.tokens_s))),
            )
            for model, deed in sorted(self._deeds.items())
            if deed.assignment.stage is Stage.READY
            and (seen := self._traffic.get(model)) is not None
            and seen.in_flight
        )

    def forget_claims(self) -> None:
        """For a node that joins another mesh: what runs stays, what was only claimed does not."""
        self._deeds = {
            model: replace(deed, assignment=replace(deed.assignment, settled=False))
            for model, deed in self._deeds.items()
            if deed.assignment.stage is not Stage.CLAIMED
        }

    def _busy(self, model: str) -> bool:
        seen = self._traffic.get(model)
        return seen is not None and seen.in_flight > 0


def _more(now: int, before: int, most: int | None) -> int:
    more = max(0, now - before)
    return more if most is None else min(more, most)


def _step(number: int) -> int:
    """Round down to a power of two: changes by less are nobody's business."""
    return 1 << (number.bit_length() - 1) if number > 0 else 0
