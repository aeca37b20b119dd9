"""One engine as a child process: started, watched, started again when it dies, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshd.errors import UserError
from meshd.units.engine_log import EngineLog, telling_line
from meshd.units.spec import EngineKind, EngineSpec, EngineState, EngineStatus

_OURS = ("LLAMA_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "MESHD_")


@dataclass(frozen=True, slots=True)
class Timing:
    """:ivar first_delay_s: before the first restart; each further one waits twice as long.

    :ivar healthy_after_s: an engine that lived so long starts over with the first delay.
    :ivar term_s: between SIGTERM and SIGKILL; a llama-server whose peer hangs ignores SIGTERM.
    """

    first_delay_s: float = 0.5
    last_delay_s: float = 30.0
    healthy_after_s: float = 60.0
    term_s: float = 5.0

    def delay_s(self, failures: int) -> float:
        """
        >>> [Timing().delay_s(count) for count in (1, 2, 3, 9)]
        [0.5, 1.0, 2.0, 30.0]
        """
        return min(self.first_delay_s * 2.0 ** min(failures - 1, 30), self.last_delay_s)


def engine_environment(
    spec: EngineSpec, inherited: Mapping[str, str], home: Path
) -> dict[str, str]:
    """What an engine sees; LLAMA_ARG_* of whoever started us would overrule the plan.

    :param home: its HOME and cache, as the unit template sets them.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith(_OURS)}
    own = {
        "HOME": str(home),
        "LLAMA_CACHE": str(home),
        # An engine whose peer died aborts; with a debugger about, ggml would first take seconds
        # to print a backtrace.
        "GGML_NO_BACKTRACE": "1",
    }
    return {**kept, **own, **dict(spec.environment)}


def command(spec: EngineSpec) -> tuple[str, ...]:
    """What is started: a guard is this same meshd, wherever it is installed."""
    if spec.kind is EngineKind.GUARD:
        return (sys.executable, "-m", "meshd.cli.main", *spec.argv[1:])
    return spec.argv


def ended(code: int, lines: tuple[str, ...]) -> str:
    """How a process ended, for people. :param code: as asyncio gives it, negative for a signal.

    >>> ended(-9, ())
    'killed by SIGKILL'
    >>> ended(1, ("error: no model",))
    'exit code 1: error: no model'
    """
    try:
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    except ValueError:
        how = f"killed by signal {-code}"
    # Of a signal the engine itself knows nothing, so its last words count only if they tell.
    line = telling_line(lines) or (lines[-1] if lines and code >= 0 else "")
    return f"{how}: {line}" if line else how


class Child:
    """One engine. All its signals are sent by its own task, to the process that it started.

    :param socket: the path it listens on, if any; a file left there by a dead one is removed.
    :param home: a folder for its caches, made when it is not there.
    :param changed: called after each change of `status`.
    :param prepare: as in `units.process.ProcessApplier`.
    """

    def __init__(
        self,
        spec: EngineSpec,
        text: str,
        *,
        socket: Path | None,
        home: Path,
        log: EngineLog,
        timing: Timing,
        changed: Callable[[], None],
        prepare: Callable[[EngineSpec], None] | None = None,
    ) -> None:
        self.spec = spec
        self._text = text
        self._socket = socket
        self._home = home
        self._log = log
        self._timing = timing
        self._changed = changed
        self._prepare = prepare
        self._state = EngineState.STARTING
        self._detail = ""
        self._pid: int | None = None
        self._restarts = 0
        self._stop = asyncio.Event()
        self._attempted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(
            kind=self.spec.kind,
            name=self.spec.name,
            state=self._state,
            text=self._text,
            pid=self._pid,
            restarts=self._restarts,
            detail=self._detail,
        )

    async def start(self) -> None:
        """Return when the process was started, or could not be: see `status`."""
        self._task = asyncio.create_task(self._supervise(), name=self.spec.unit)
        await self._attempted.wait()

    async def stop(self) -> None:
        """Return when the process is gone, and its socket with it."""
        self._stop.set()
        if self._task is not None:
            await self._task

    def _become(self, state: EngineState, detail: str = "", pid: int | None = None) -> None:
        self._state, self._detail, self._pid = state, detail, pid
        self._changed()

    async def _supervise(self) -> None:
        failures = 0
        clock = asyncio.get_running_loop().time
        try:
            while not self._stop.is_set():
                began = clock()
                detail = await self._live()
                if self._stop.is_set():
                    break
                failures = 1 if clock() - began >= self._timing.healthy_after_s else failures + 1
                self._become(EngineState.BACKOFF, detail)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._timing.delay_s(failures)):
                        await self._stop.wait()
                if not self._stop.is_set():
                    self._restarts += 1
        finally:
            self._attempted.set()
            self._remove_socket()
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.parent.rmdir()
            self._become(EngineState.STOPPED)

    async def _live(self) -> str:
        """One life of the process, from start to end; how it ended."""
        self._log.forget()
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            if self._socket is not None:
                self._socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._remove_socket()
            if self._prepare is not None:
                await asyncio.to_thread(self._prepare, self.spec)
            process = await asyncio.create_subprocess_exec(
                # The kernel ends it when we die, whatever kills us.
                *("setpriv", "--pdeathsig", "KILL", "--", *command(self.spec)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=engine_environment(self.spec, os.environ, self._home),
                cwd="/",
                start_new_session=True,
            )
        except (OSError, UserError) as error:
            self._attempted.set()
            return f"cannot be started: {error}"
        self._become(EngineState.RUNNING, pid=process.pid)
        self._attempted.set()
        assert process.stdout is not None
        reading = asyncio.create_task(self._read(process.stdout))
        dying = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({dying, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not dying.done():
                self._become(EngineState.STOPPING, pid=process.pid)
                _signal(process, signal.SIGTERM)
                await asyncio.wait({dying}, timeout=self._timing.term_s)
        finally:
            if not dying.done():
                _signal(process, signal.SIGKILL)
            code = await dying
            stopping.cancel()
            # A grandchild could hold the pipe open for ever.
            await asyncio.wait({reading}, timeout=1.0)
            reading.cancel()
        return ended(code, self._log.lines)

    async def _read(self, output: asyncio.StreamReader) -> None:
        while data := await output.read(65536):
            self._log.remember(data)
            # A full disk must not stop the engine: its last lines are in memory all the same.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._log.write, data)

    def _remove_socket(self) -> None:
        # llama-server refuses a path that exists.
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.unlink()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
