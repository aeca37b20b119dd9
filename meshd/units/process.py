"""The applier without systemd: engines as child processes, for a container, a laptop or a test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from meshd.paths import Paths
from meshd.units.child import Child, Timing
from meshd.units.diff import ActionKind, diff
from meshd.units.engine_log import EngineLog
from meshd.units.spec import Desired, EngineKind, EngineSpec, EngineState, EngineStatus, Outcome
from meshd.units.waves import downward, upward

# unix(7): sun_path has 108 bytes with its closing NUL.
_SOCKET_PATH_LIMIT = 107


def log_path(paths: Paths, kind: EngineKind, name: str) -> Path:
    """Where an engine's output is kept; the part before it has ``.1`` appended."""
    return paths.run / "log" / f"{kind}-{name}.log"


class ProcessApplier:
    """An `Applier` whose engines are our children and die with us.

    Memory limits of a spec need a cgroup and are not enforced here.

    :param text: renders the drop-in; two engines of the same text are the same.
    :param prepare: called in a thread before each start of an engine, restarts too; it may raise
        `OSError` or `UserError`, and the engine does not start then.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        text: Callable[[EngineSpec, Paths], str],
        timing: Timing | None = None,
        prepare: Callable[[EngineSpec], None] | None = None,
    ) -> None:
        self._paths = paths
        self._prepare = prepare
        self._render = text
        self._timing = timing or Timing()
        self._children: dict[str, Child] = {}
        self._applying = asyncio.Lock()
        self._news = asyncio.Event()

    async def apply(self, desired: Desired) -> Outcome:
        """Converge; engines whose text did not change are not touched."""
        async with self._applying:
            wanted = {spec.unit: spec for spec in desired.engines}
            left = set(desired.leave) - {spec.unit for spec in desired.engines}
            running = [one for one in await self.observe() if one.unit not in left]
            actions = diff(running, desired.engines, self._text)
            by_kind = {
                kind: [action.unit for action in actions if action.kind is kind]
                for kind in ActionKind
            }
            # Memory first: all that ends has ended before anything starts.
            for wave in downward(by_kind[ActionKind.STOP] + by_kind[ActionKind.RESTART]):
                await asyncio.gather(*(self._end(unit) for unit in wave))
            failed: dict[str, str] = {}
            for wave in upward(by_kind[ActionKind.RESTART] + by_kind[ActionKind.START]):
                errors = await asyncio.gather(*(self._begin(wanted[unit]) for unit in wave))
                failed |= dict(zip(wave, errors, strict=True))

            def done(kind: ActionKind) -> tuple[str, ...]:
                return tuple(unit for unit in by_kind[kind] if not failed.get(unit))

            return Outcome(
                generation=desired.generation,
                started=done(ActionKind.START),
                stopped=done(ActionKind.STOP),
                restarted=done(ActionKind.RESTART),
                errors=tuple(f"{unit}: {error}" for unit, error in failed.items() if error),
            )

    async def observe(self) -> tuple[EngineStatus, ...]:
        """Every engine of ours, sorted by unit."""
        return tuple(child.status for _, child in sorted(self._children.items()))

    async def changed(self) -> None:
        """Return when the state of an engine has changed since the last call."""
        await self._news.wait()
        self._news.clear()

    async def close(self) -> None:
        """End all engines."""
        async with self._applying:
            for wave in downward(tuple(self._children)):
                await asyncio.gather(*(self._end(unit) for unit in wave))

    def _text(self, spec: EngineSpec) -> str:
        return self._render(spec, self._paths)

    async def _begin(self, spec: EngineSpec) -> str:
        """Start one engine; what went wrong, or ""."""
        # What is left of an engine that waited for its restart must not linger beside the new one.
        await self._end(spec.unit)
        socket = _socket(spec, self._paths)
        if socket is not None and len(os.fsencode(socket)) > _SOCKET_PATH_LIMIT:
            return f"{socket}: longer than {_SOCKET_PATH_LIMIT} bytes (use a shorter --root)"
        child = Child(
            spec,
            self._text(spec),
            socket=socket,
            home=self._paths.state / "engine-cache" / f"{spec.kind}-{spec.name}",
            log=EngineLog(log_path(self._paths, spec.kind, spec.name)),
            timing=self._timing,
            changed=self._news.set,
            prepare=self._prepare,
        )
        self._children[spec.unit] = child
        await child.start()
        status = child.status
        return status.detail if status.state is EngineState.BACKOFF else ""

    async def _end(self, unit: str) -> None:
        child = self._children.get(unit)
        if child is not None:
            await child.stop()
            # Unseen by `observe` only now, so that an engine that ends is shown as STOPPING.
            self._children.pop(unit, None)
            self._news.set()


def _socket(spec: EngineSpec, paths: Paths) -> Path | None:
    match spec.kind:
        case EngineKind.LLAMA:
            return paths.engine_socket(spec.name)
        case EngineKind.GUARD:
            return paths.guard_socket(spec.name)
        case EngineKind.RPC:
            return None
