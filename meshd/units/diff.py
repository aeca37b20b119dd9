"""What has to happen so that the engines that run become those that should. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from meshd.units.spec import EngineSpec, EngineState, EngineStatus


class ActionKind(StrEnum):
    STOP = "stop"
    RESTART = "restart"
    START = "start"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Action:
    """One unit's share of a change.

    :ivar reason: for people, a few words.
    :ivar load_bytes: read from disk when the engine starts; 0 where none does.
    """

    kind: ActionKind
    unit: str
    reason: str
    load_bytes: int = 0


# Memory first: what stops makes room for what restarts, and both for what starts.
_ORDER = {kind: place for place, kind in enumerate(ActionKind)}


def diff(
    running: Sequence[EngineStatus],
    desired: Sequence[EngineSpec],
    render: Callable[[EngineSpec], str],
) -> tuple[Action, ...]:
    """Actions in the order in which they are to be done, one for each unit known to either side.

    A unit whose text did not change is never touched, also while it waits to be started again:
    that is its own restart setting's work.

    :param running: as observed; a `text` is what the process was started with.
    :raises ValueError: when two specs are for one unit.
    """
    wanted = {spec.unit: spec for spec in desired}
    if len(wanted) != len(desired):
        raise ValueError("two engines of one name are wanted")
    present = {status.unit: status for status in running}
    actions = [_towards(spec, present.get(unit), render(spec)) for unit, spec in wanted.items()]
    actions += [
        Action(ActionKind.STOP, unit, "no longer wanted")
        for unit, status in present.items()
        if unit not in wanted and status.state is not EngineState.STOPPED
    ]
    return tuple(sorted(actions, key=lambda action: (_ORDER[action.kind], action.unit)))


def changes(actions: Sequence[Action]) -> tuple[Action, ...]:
    """Without those that leave a unit alone."""
    return tuple(action for action in actions if action.kind is not ActionKind.NONE)


def _towards(spec: EngineSpec, status: EngineStatus | None, text: str) -> Action:
    if status is None:
        return Action(ActionKind.START, spec.unit, "new", spec.load_bytes)
    if status.state in (EngineState.STOPPED, EngineState.STOPPING):
        return Action(ActionKind.START, spec.unit, "not running", spec.load_bytes)
    if status.text == text:
        return Action(ActionKind.NONE, spec.unit, f"unchanged, {status.state}")
    reason = "settings changed" if status.text else "started by somebody else"
    return Action(ActionKind.RESTART, spec.unit, reason, spec.load_bytes)
