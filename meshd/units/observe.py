"""Engine units as systemd sees them, in our words."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from meshd.units.port import Systemd, UnitState
from meshd.units.render import DROPIN_NAME, dropin_path
from meshd.units.spec import EngineKind, EngineState, EngineStatus

UNITS = Path("/run/systemd/system")
_UNIT = re.compile(rf"mesh-({'|'.join(EngineKind)})@([a-z0-9][a-z0-9._-]{{0,62}})\.service")
_MAX_TEXT_BYTES = 1024 * 1024

_STATES = {
    "active": EngineState.RUNNING,
    "reloading": EngineState.RUNNING,
    "refreshing": EngineState.RUNNING,
    "activating": EngineState.STARTING,
    "maintenance": EngineState.STOPPING,
    "deactivating": EngineState.STOPPING,
    "failed": EngineState.FAILED,
}


async def observe(systemd: Systemd, units: Path = UNITS) -> tuple[EngineStatus, ...]:
    """Every engine unit that is loaded or has a drop-in of ours.

    :raises SystemdError: systemd does not answer.
    """
    loaded = {state.unit: state for state in await systemd.units()}
    names = sorted(loaded.keys() | set(dropins(units)))
    return tuple(engine_status(name, loaded.get(name), _text(name, units)) for name in names)


def dropins(units: Path = UNITS) -> tuple[str, ...]:
    """Units that have a drop-in of ours on disk."""
    found = (
        path.parent.name.removesuffix(".d") for path in units.glob(f"mesh-*@*.d/{DROPIN_NAME}")
    )
    return tuple(sorted(unit for unit in found if _UNIT.fullmatch(unit)))


def engine_status(unit: str, state: UnitState | None, text: str) -> EngineStatus:
    """Pure: systemd's words for one unit in ours. :param state: None for a unit not loaded."""
    match = _UNIT.fullmatch(unit)
    assert match, unit
    kind, name = EngineKind(match[1]), match[2]
    if state is None:
        return EngineStatus(kind, name, EngineState.STOPPED, text)
    return EngineStatus(
        kind,
        name,
        engine_state(state.active_state, state.sub_state),
        text,
        pid=state.main_pid or None,
        restarts=state.restarts,
        detail=_detail(state),
    )


def engine_state(active: str, sub: str) -> EngineState:
    """Pure. Between two attempts a unit is "activating (auto-restart)", and for a moment before
    that (since 254) "failed (failed-before-auto-restart)".
    """
    if "auto-restart" in sub:
        return EngineState.BACKOFF
    return _STATES.get(active, EngineState.STOPPED)


def _detail(state: UnitState) -> str:
    if state.result == "success":
        return ""
    if state.exit_code == 1:
        return f"{state.result}: status {state.exit_status}"
    if state.exit_code in (2, 3):
        try:
            name = signal.Signals(state.exit_status).name
        except ValueError:
            name = str(state.exit_status)
        return f"{state.result}: {name}"
    return state.result


def _text(unit: str, units: Path) -> str:
    try:
        with dropin_path(unit, units).open(encoding="utf-8", newline="") as file:
            return file.read(_MAX_TEXT_BYTES)
    except (OSError, ValueError):
        # Unknown text: the diff's "started by somebody else".
        return ""
