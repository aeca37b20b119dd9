"""From actions to the single steps of the hand, in an order that may be cut off anywhere. Pure.

A drop-in is only written or removed while its engine does not run. So the text on disk is always
what a running process was started with, and after an interruption a new diff sees the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from meshd.units.diff import Action, ActionKind
from meshd.units.waves import downward, upward


class StepKind(StrEnum):
    STOP = "stop"
    REMOVE = "remove"
    WRITE = "write"
    RELOAD = "reload"
    START = "start"


@dataclass(frozen=True, slots=True)
class Step:
    """:ivar unit: empty for RELOAD. :ivar text: of WRITE, else empty."""

    kind: StepKind
    unit: str = ""
    text: str = ""


def steps(
    actions: Sequence[Action], texts: Mapping[str, str], dropins: Iterable[str]
) -> tuple[Step, ...]:
    """All stops, then the files, one reload, then all starts; a llama-server stops before what it
    stands on, and starts after it.

    :param texts: what each wanted unit's drop-in should say.
    :param dropins: units that have a drop-in of ours on disk; those not wanted lose it.
    """
    ending = [a.unit for a in actions if a.kind in (ActionKind.STOP, ActionKind.RESTART)]
    beginning = [a.unit for a in actions if a.kind in (ActionKind.START, ActionKind.RESTART)]
    stopping = [unit for wave in downward(ending) for unit in wave]
    starting = [unit for wave in upward(beginning) for unit in wave]
    stale = sorted((set(dropins) | set(stopping)) - texts.keys())
    files = [Step(StepKind.REMOVE, unit) for unit in stale]
    files += [Step(StepKind.WRITE, unit, texts[unit]) for unit in starting]
    reload = [Step(StepKind.RELOAD)] if files else []
    return (
        *(Step(StepKind.STOP, unit) for unit in stopping),
        *files,
        *reload,
        *(Step(StepKind.START, unit) for unit in starting),
    )
