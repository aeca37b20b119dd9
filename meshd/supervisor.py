"""The brain of a node: one loop that runs the pipeline whenever something may have changed.

Each pass goes load -> observe -> view -> plan -> render -> diff -> apply and ends with a sentence
that says how things stand. What happens between observe and apply is pure (`meshd.pipeline`);
this file only decides *when*, and keeps what has to be remembered from one pass to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from meshd import pipeline
from meshd.config.load import ConfigError, Loaded, SourceFile
from meshd.errors import UserError
from meshd.gateway.routes import RoutingTable
from meshd.generations import Generation
from meshd.health import HealthMonitor, Watched
from meshd.notify import Notifier
from meshd.paths import Paths
from meshd.pipeline import Observation, Proposal
from meshd.planner.view import Running
from meshd.report import PlanReport
from meshd.status import NodeStatus
from meshd.units.spec import Applier, Desired, EngineState

_log = structlog.get_logger(__name__)

PASS_INTERVAL_S = 10.0
_APPLY_DEADLINE_S = 20.0


class Observer(Protocol):
    """The port to what can be measured on this node."""

    async def __call__(self, loaded: Loaded) -> Observation: ...


class Memory(Protocol):
    """The port to what is kept on disk between passes and between lives."""

    def load_config(self) -> Loaded: ...

    def parse(self, files: tuple[SourceFile, ...]) -> Loaded: ...

    def last_good(self) -> list[Generation]: ...

    def save_good(self, files: tuple[SourceFile, ...], summary: str) -> None: ...

    def load_running(self) -> tuple[tuple[Running, ...], int]: ...

    def save_running(self, running: tuple[Running, ...], generation: int) -> None: ...

    def write_routes(self, table: RoutingTable) -> None: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """A configuration on trial. :ivar before: what comes back when nobody keeps it."""

    candidate: Loaded
    before: Loaded
    ends_s: float


class Supervisor:
    """One node's brain.

    :param serve: called in each pass, so that console and gateway listen where the config says.
    :param ready: called once, after the first finished pass and before READY=1.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        applier: Applier,
        observer: Observer,
        memory: Memory,
        notifier: Notifier,
        serve: Callable[[Loaded], Awaitable[None]],
        ready: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._applier = applier
        self._observer = observer
        self._memory = memory
        self._notifier = notifier
        self._serve = serve
        self._ready = ready
        self._clock = clock
        self._wake = asyncio.Event()
        self._pass_lock = asyncio.Lock()
        self._health = HealthMonitor(self._wake.set)
        self._reload_asked = False
        self._stopping = False
        self._loaded: Loaded | None = None
        self._rejected = ""
        self._fallback = ""
        self._trial: Trial | None = None
        self._door_error = ""
        self._apply_errors: tuple[str, ...] = ()
        self._running, self._generation = memory.load_running()
        self._table: RoutingTable | None = None
        self._status: NodeStatus | None = None

    # -- what the outside may ask ---------------------------------------------------------------

    def ask_reload(self) -> None:
        """For the SIGHUP handler: the work happens in the loop."""
        self._reload_asked = True
        self._wake.set()

    def ask_stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def status(self) -> NodeStatus:
        """:raises UserError: before the first pass."""
        if self._status is None:
            raise UserError("meshd is still starting", hint="try again in a moment")
        return self._status

    async def preview(self, files: tuple[SourceFile, ...]) -> PlanReport:
        """What `files` would change, with nothing changed."""
        loaded = self._memory.parse(files)
        proposal = await self._propose(loaded)
        return pipeline.report(proposal, loaded)

    async def reload(self) -> None:
        """Take up the configuration on disk.

        :raises ConfigError: when it is bad; the old one stays in force.
        """
        async with self._pass_lock:
            loaded = await asyncio.to_thread(self._load_or_reject)
            self._trial = None
            await self._adopt(loaded)

    def trial(self) -> tuple[SourceFile, ...] | None:
        return self._trial.candidate.files if self._trial else None

    async def begin_trial(self, files: tuple[SourceFile, ...], timeout_s: float) -> None:
        """Apply `files` now and undo it after `timeout_s`, unless `end_trial(keep=True)`."""
        if not 1 <= timeout_s <= 86_400:
            raise UserError(f"a trial of {timeout_s:g} s", hint="choose from 1 to 86400 seconds")
        candidate = self._memory.parse(files)
        async with self._pass_lock:
            assert self._loaded is not None
            before = self._trial.before if self._trial else self._loaded
            self._trial = Trial(candidate, before, self._clock() + timeout_s)
            await self._adopt(candidate)
        self._wake.set()

    async def end_trial(self, *, keep: bool) -> None:
        """:raises UserError: when nothing is on trial (it may just have run out)."""
        async with self._pass_lock:
            if self._trial is None:
                raise UserError("nothing is on trial; it may have run out", hint="meshd try FILE")
            trial, self._trial = self._trial, None
            await self._adopt(trial.candidate if keep else trial.before)

    # -- the loop -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until `ask_stop`.

        :raises ConfigError: the configuration is bad and there is no good generation.
        """
        self._loaded = await asyncio.to_thread(self._boot_config)
        changes = asyncio.create_task(self._follow_applier(), name="follow applier")
        try:
            async with self._pass_lock:
                await self._pass()
            await self._ready()
            self._notifier.ready()
            while not self._stopping:
                await self._wait()
                if self._stopping:
                    break
                await self._turn()
                self._notifier.watchdog()
        finally:
            self._notifier.stopping()
            changes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await changes
            await self._health.close()
            await self._applier.close()

    async def _turn(self) -> None:
        if self._reload_asked:
            self._reload_asked = False
            self._notifier.reloading()
            try:
                await self.reload()
            except UserError as error:
                _log.error("reload rejected, the old configuration stays", error=str(error))
                async with self._pass_lock:
                    await self._pass()
            self._notifier.ready()
            return
        async with self._pass_lock:
            if self._trial and self._clock() >= self._trial.ends_s:
                _log.warning("trial ran out, the configuration before it comes back")
                self._loaded, self._trial = self._trial.before, None
            await self._pass()

    async def _wait(self) -> None:
        interval_s = PASS_INTERVAL_S
        if self._notifier.watchdog_interval_s:
            interval_s = min(interval_s, self._notifier.watchdog_interval_s / 3)
        if self._trial:
            interval_s = min(interval_s, max(0.0, self._trial.ends_s - self._clock()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), interval_s)
        self._wake.clear()

    async def _follow_applier(self) -> None:
        while True:
            await self._applier.changed()
            self._wake.set()

    # -- configuration --------------------------------------------------------------------------

    def _boot_config(self) -> Loaded:
        """The configuration on disk; when it is bad, the newest good generation, loudly.

        :raises ConfigError: when there is no good generation either.
        """
        try:
            return self._memory.load_config()
        except ConfigError as error:
            for generation in self._memory.last_good():
                with contextlib.suppress(ConfigError):
                    loaded = self._memory.parse(generation.files)
                    self._fallback = (
                        f"degraded: the configuration is bad ({_first_line(error)}), running the "
                        f"last good one, generation {generation.number}"
                    )
                    _log.error(self._fallback, error=str(error))
                    return loaded
            raise

    def _load_or_reject(self) -> Loaded:
        try:
            loaded = self._memory.load_config()
        except ConfigError as error:
            self._rejected = f"reload rejected: {_first_line(error)}"
            raise
        self._rejected = ""
        return loaded

    async def _adopt(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._fallback = ""
        await self._pass()

    # -- one pass -------------------------------------------------------------------------------

    async def _pass(self) -> None:
        assert self._loaded is not None
        loaded = self._loaded
        proposal = await self._propose(loaded)
        if proposal.actions:
            proposal = await self._apply(loaded, proposal)
        self._running = proposal.running
        self._watch_health(proposal)
        self._door_error = await self._open_doors(loaded)
        self._publish(loaded, proposal)

    async def _propose(self, loaded: Loaded) -> Proposal:
        observation = await self._observer(loaded)
        engines = await self._applier.observe()
        return pipeline.propose(
            loaded.config,
            observation,
            engines,
            pipeline.with_residency(self._running, engines, self._health.ready),
            self._paths,
        )

    async def _apply(self, loaded: Loaded, proposal: Proposal) -> Proposal:
        self._generation += 1
        for action in proposal.actions:
            _log.info("unit changes", action=action.kind, unit=action.unit, reason=action.reason)
        # Remembered before it is done: after a crash half way, the diff finds the rest.
        self._memory.save_running(proposal.running, self._generation)
        desired = Desired(self._generation, proposal.specs)
        try:
            outcome = await asyncio.wait_for(self._applier.apply(desired), _APPLY_DEADLINE_S)
            errors = outcome.errors
        except TimeoutError:
            errors = (f"applying took more than {_APPLY_DEADLINE_S:.0f} s",)
        except UserError as error:
            errors = (str(error),)
        self._apply_errors = errors
        for line in errors:
            _log.error("apply", error=line)
        engines = await self._applier.observe()
        return pipeline.with_engines(proposal, engines)

    async def _open_doors(self, loaded: Loaded) -> str:
        try:
            await self._serve(loaded)
        except UserError as error:
            if str(error) != self._door_error:
                _log.error("cannot listen", error=str(error))
            return str(error)
        return ""

    def _watch_health(self, proposal: Proposal) -> None:
        self._health.watch(
            {
                Watched(status.unit, status.pid, self._paths.engine_socket(status.name))
                for status in proposal.engines
                if status.pid and status.state is EngineState.RUNNING
            }
        )

    def _publish(self, loaded: Loaded, proposal: Proposal) -> None:
        status = pipeline.node_status(
            loaded,
            proposal,
            self._health.ready,
            degraded=tuple(
                filter(
                    None, (self._fallback, self._rejected, self._door_error, *self._apply_errors)
                )
            ),
            generation=self._generation,
            trial_ends_s=self._trial.ends_s if self._trial else None,
        )
        table = pipeline.routes(loaded.config, proposal, status, self._paths, self._table)
        if table != self._table:
            self._memory.write_routes(table)
            self._table = table
        if self._status is None or status.sentence != self._status.sentence:
            _log.info(status.sentence)
            self._notifier.status(status.sentence)
        self._status = status
        if status.healthy and self._trial is None:
            self._memory.save_good(loaded.files, status.sentence)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
