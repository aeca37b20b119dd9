"""systemd's words for a unit's state, in meshd's."""

from __future__ import annotations

import pytest

from meshd.units.observe import engine_state, engine_status
from meshd.units.port import UnitState
from meshd.units.spec import EngineState


@pytest.mark.parametrize(
    ("active", "sub", "state"),
    [
        ("activating", "start", EngineState.STARTING),
        ("activating", "start-pre", EngineState.STARTING),
        ("activating", "auto-restart", EngineState.BACKOFF),
        ("activating", "auto-restart-queued", EngineState.BACKOFF),
        ("failed", "failed-before-auto-restart", EngineState.BACKOFF),
        ("inactive", "dead-before-auto-restart", EngineState.BACKOFF),
        ("active", "running", EngineState.RUNNING),
        ("reloading", "reload", EngineState.RUNNING),
        ("deactivating", "stop-sigterm", EngineState.STOPPING),
        ("deactivating", "stop-sigkill", EngineState.STOPPING),
        ("failed", "failed", EngineState.FAILED),
        ("inactive", "dead", EngineState.STOPPED),
        ("some future word", "x", EngineState.STOPPED),
    ],
)
def test_states(active: str, sub: str, state: EngineState) -> None:
    assert engine_state(active, sub) is state


@pytest.mark.parametrize(
    ("result", "code", "status", "detail"),
    [
        ("success", 0, 0, ""),
        ("exit-code", 1, 203, "exit-code: status 203"),
        ("signal", 2, 9, "signal: SIGKILL"),
        ("core-dump", 3, 11, "core-dump: SIGSEGV"),
        ("signal", 2, 250, "signal: 250"),
        ("oom-kill", 0, 0, "oom-kill"),
    ],
)
def test_why_an_engine_ended(result: str, code: int, status: int, detail: str) -> None:
    unit = "mesh-rpc@gpu0.service"
    state = UnitState(unit, "activating", "auto-restart", 0, 3, result, code, status)
    found = engine_status(unit, state, "text")
    assert (found.unit, found.detail, found.restarts, found.pid) == (unit, detail, 3, None)
