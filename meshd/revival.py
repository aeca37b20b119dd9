"""Engines that hang or run out of memory: what is done about them, remembered between passes.

A hung engine cannot end itself, and the brain may not kill. But a unit whose text changes is
restarted by the hand, and systemd kills what ignores SIGTERM: so each try has a number, which
stands in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from meshd.instance import instance_name
from meshd.planner.layout import RAM
from meshd.planner.view import Ceiling, Running
from meshd.progress import Verdict
from meshd.status import engine_of
from meshd.units.render import attempt_in
from meshd.units.spec import EngineState, EngineStatus

DELAYS_S = (0.0, 10.0, 30.0)
"""Before the first restart of an engine that hangs, the second and the third."""

WINDOW_S = 600.0
"""Troubles that are further apart have nothing to do with each other."""

PROBATION_S = 300.0
_PROBATION_MOST_S = 3600.0
_OOMS_MOST = 3
# What does not depend on context and slots cannot shrink.
_SHRINK = 0.75
_KEPT_MOST = 256

Verdicts = Callable[[str, int | None], Verdict | None]
"""How the engine of a unit is, as this pid; None where nobody looked yet."""


@dataclass(frozen=True, slots=True)
class Revival:
    """What the next plan has to heed.

    :ivar attempts: number of the try, by unit; 0 where there is none.
    :ivar failed: why a model's engine is not to run for now, by model.
    :ivar ceilings: of models that ran out of memory.
    :ivar reasons: why a unit has a new number, one sentence.
    """

    attempts: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    ceilings: Mapping[str, Ceiling] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Case:
    """One model's. Times are monotonic.

    :ivar hung: when it was restarted for hanging. :ivar handled: pid of the last that was.
    :ivar answered: the present process did.
    """

    unit: str = ""
    attempt: int = 0
    hung: list[float] = field(default_factory=list)
    handled: int | None = None
    why: str = ""
    due_s: float | None = None
    failed_until_s: float | None = None
    probations: int = 0
    answered: bool = False
    ooms: list[float] = field(default_factory=list)
    fall: tuple[int, str] | None = None
    ceiling: Ceiling | None = None
    ceiling_until_s: float = 0.0
    seen_s: float = 0.0


class Revivals:
    """:param clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._cases: dict[str, _Case] = {}

    def look(
        self,
        running: tuple[Running, ...],
        engines: tuple[EngineStatus, ...],
        verdicts: Verdicts,
    ) -> Revival:
        """Take note of how things are; asked twice, the answer is the same."""
        now_s = self._clock()
        for one in running:
            engine = engine_of(engines, instance_name(one.decision.model))
            if engine is not None:
                self._look(one, engine, verdicts(engine.unit, engine.pid), now_s)
        for case in self._cases.values():
            self._over(case, now_s)
        self._forget(now_s)
        return Revival(
            attempts={case.unit: case.attempt for case in self._cases.values() if case.attempt},
            failed={
                model: case.why
                for model, case in self._cases.items()
                if case.failed_until_s is not None
            },
            ceilings={
                model: case.ceiling
                for model, case in self._cases.items()
                if case.ceiling is not None
            },
            reasons={case.unit: case.why for case in self._cases.values() if case.attempt},
        )

    def again_s(self) -> float | None:
        """When to look again although nothing happened."""
        now_s = self._clock()
        due = [
            time_s - now_s
            for case in self._cases.values()
            for time_s in (
                case.due_s,
                case.failed_until_s,
                None if case.ceiling is None else case.ceiling_until_s,
            )
            if time_s is not None
        ]
        return max(0.0, min(due)) if due else None

    def _look(
        self, one: Running, engine: EngineStatus, verdict: Verdict | None, now_s: float
    ) -> None:
        model = one.decision.model
        attempt = attempt_in(engine.text)
        case = self._cases.get(model)
        if case is None:
            if not (attempt or (verdict and verdict.lost) or _fell(engine)):
                return
            case = self._cases[model] = _Case()
        # A life of ours before this one may have counted further.
        case.unit, case.attempt = engine.unit, max(case.attempt, attempt)
        case.seen_s = now_s
        case.due_s = None
        if verdict is not None and verdict.lost:
            self._hangs(case, engine, verdict, now_s)
        elif verdict is not None and one.resident:
            case.answered = True
        self._falls(case, one, engine, now_s)

    def _hangs(self, case: _Case, engine: EngineStatus, verdict: Verdict, now_s: float) -> None:
        if case.handled == engine.pid or case.failed_until_s is not None:
            return
        case.hung = [time_s for time_s in case.hung if now_s - time_s < WINDOW_S]
        if len(case.hung) >= len(DELAYS_S):
            self._fail(case, f"hung {len(case.hung) + 1} times in a row: {verdict.why}", now_s)
            return
        due_s = (case.hung[-1] + DELAYS_S[len(case.hung)]) if case.hung else now_s
        if now_s < due_s:
            case.due_s = due_s
            return
        case.hung.append(now_s)
        case.handled = engine.pid
        case.attempt += 1
        case.why = f"hung: {verdict.why}"

    def _falls(self, case: _Case, one: Running, engine: EngineStatus, now_s: float) -> None:
        fall = (engine.restarts, engine.text)
        if not _fell(engine) or fall == case.fall:
            return
        case.fall = fall
        answered, case.answered = case.answered, False
        # Whoever kills from outside does not say why; the kernel kills what just grew.
        if answered and not engine.detail.startswith("oom-kill"):
            return
        case.ooms = [time_s for time_s in case.ooms if now_s - time_s < WINDOW_S]
        case.ooms.append(now_s)
        if len(case.ooms) < _OOMS_MOST:
            return
        case.ooms = []
        use = [use for use in one.decision.memory if use.device == RAM]
        planned = sum(each.total_bytes for each in use)
        weights = sum(each.weights_bytes for each in use)
        if one.decision.parts or planned <= weights:
            self._fail(case, "ran out of memory three times", now_s)
            return
        failed = max(planned, case.ceiling.failed_bytes if case.ceiling else 0)
        case.ceiling = Ceiling(weights + int((planned - weights) * _SHRINK), failed)
        # Who runs below it by then goes on so; who found no shape that fits is tried again.
        case.ceiling_until_s = now_s + self._probation_s(case)

    def _fail(self, case: _Case, why: str, now_s: float) -> None:
        case.why, case.failed_until_s, case.hung = why, now_s + self._probation_s(case), []

    @staticmethod
    def _probation_s(case: _Case) -> float:
        """Twice as long each time."""
        case.probations += 1
        return min(PROBATION_S * 2.0 ** min(case.probations - 1, 16), _PROBATION_MOST_S)

    def _over(self, case: _Case, now_s: float) -> None:
        if case.failed_until_s is not None and now_s >= case.failed_until_s:
            case.failed_until_s = None
            case.attempt += 1
            case.seen_s = now_s
        if case.ceiling is not None and now_s >= case.ceiling_until_s:
            case.ceiling = None

    def _forget(self, now_s: float) -> None:
        # A number that is still in a text is found there again.
        idle = [
            model
            for model, case in self._cases.items()
            if case.failed_until_s is None
            and case.ceiling is None
            and now_s - case.seen_s > _PROBATION_MOST_S
        ]
        for model in (*idle, *list(self._cases)[:-_KEPT_MOST]):
            self._cases.pop(model, None)


def _fell(engine: EngineStatus) -> bool:
    """Whether it ended as one does that the kernel kills for its memory."""
    return engine.state in (EngineState.BACKOFF, EngineState.FAILED) and engine.detail.startswith(
        ("oom-kill", "killed by SIGKILL")
    )
