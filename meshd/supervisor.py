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
from dataclasses import replace
from typing import Protocol

import structlog

from meshd import pipeline, said
from meshd.carry_out import CarryOut, KeepsRunning
from meshd.config.load import Loaded, SourceFile
from meshd.config.settings import Config, Role
from meshd.drain import may_stop
from meshd.drain_order import DrainOrder
from meshd.engine_work import works
from meshd.errors import UserError
from meshd.health import HealthMonitor, Watched
from meshd.in_force import ConfigInForce, Sources
from meshd.load_watch import LoadWatch
from meshd.mesh_port import Alone, Mesh
from meshd.notify import Notifier
from meshd.paths import Paths
from meshd.pipeline import Observation, Proposal, Sought
from meshd.publish import Outlets, Publisher
from meshd.report import PlanReport
from meshd.revival import Revivals
from meshd.shard_port import NoShards, ShardPort
from meshd.split_port import NoSplits, SplitPort
from meshd.status import NodeStatus
from meshd.units.spec import Applier, EngineKind, EngineState, EngineStatus

_log = structlog.get_logger(__name__)

PASS_INTERVAL_S = 10.0
# What happens in quick succession is answered once; short beside the second in which others expect
# us to use a lost node no more.
_PASS_GAP_S = 0.2


class Observer(Protocol):
    """The port to what can be measured on this node."""

    async def __call__(self, loaded: Loaded, sought: tuple[Sought, ...] = ()) -> Observation: ...


async def _as_configured(config: Config) -> tuple[str, ...]:
    return config.gateway.listen


class Memory(Sources, Outlets, KeepsRunning, Protocol):
    """The port to what is kept on disk between passes and between lives."""


class Supervisor:
    """One node's brain.

    :param serve: called in each pass with where other nodes reach this one, so that console and
        gateway listen where the config says.
    :param ready: called once, after the first finished pass and before READY=1.
    :param listen: where the gateway may listen now; as the config says without it.
    :param mesh: the other nodes.
    :param loads: how long engines take to load here.
    :param drain: whether this node is to be switched off.
    :param splits: what this node hosts and lends of models that are larger than a machine.
    :param shards: its parts of mixtures of experts.
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
        serve: Callable[[Loaded, tuple[str, ...]], Awaitable[None]],
        ready: Callable[[], Awaitable[None]],
        listen: Callable[[Config], Awaitable[tuple[str, ...]]] | None = None,
        mesh: Mesh | None = None,
        loads: LoadWatch | None = None,
        drain: DrainOrder | None = None,
        splits: SplitPort | None = None,
        shards: ShardPort | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._applier = applier
        self._observer = observer
        self._memory = memory
        self._notifier = notifier
        self._serve = serve
        self._ready = ready
        self._listen = listen or _as_configured
        self._mesh = mesh or Alone()
        self._loads = loads or LoadWatch(clock=clock)
        self._drain = drain or DrainOrder(clock=clock)
        self._splits = splits or NoSplits()
        self._shards = shards or NoShards()
        self._clock = clock
        self._wake = asyncio.Event()
        self._pass_lock = asyncio.Lock()
        self._health = HealthMonitor(self._wake.set)
        self._revivals = Revivals(clock)
        self._reload_asked = False
        self._stop_asked = asyncio.Event()
        self._config = ConfigInForce(memory)
        self._door_error = ""
        self._blind = ""
        self._proposal: Proposal | None = None
        self._carry_out = CarryOut(applier, memory, self._stop_asked)
        self._running = self._carry_out.running
        self._lent = self._carry_out.lent
        self._publisher = Publisher(paths, memory, notifier, self._wake.set)

    # -- what the outside may ask ---------------------------------------------------------------

    def ask_reload(self) -> None:
        """For the SIGHUP handler: the work happens in the loop."""
        self._reload_asked = True
        self._wake.set()

    def ask_stop(self) -> None:
        self._stop_asked.set()
        self._wake.set()

    def status(self) -> NodeStatus:
        """:raises UserError: before the first pass."""
        if self._publisher.status is None:
            raise UserError("meshd is still starting", hint="try again in a moment")
        return self._publisher.status

    @property
    def mesh(self) -> Mesh:
        return self._mesh

    def wake(self) -> None:
        """Something may have changed: look again soon."""
        self._wake.set()

    async def preview(self, files: tuple[SourceFile, ...]) -> PlanReport:
        """What `files` would change, with nothing changed."""
        loaded = await asyncio.to_thread(self._memory.parse, files)
        proposal = await self._propose(loaded)
        return said.report(proposal, loaded)

    async def reload(self) -> None:
        """Take up the configuration on disk.

        :raises ConfigError: when it is bad; the old one stays in force.
        """
        async with self._pass_lock:
            await asyncio.to_thread(self._config.reload)
            await self._pass()

    def trial(self) -> tuple[SourceFile, ...] | None:
        trial = self._config.trial
        return trial.candidate.files if trial else None

    async def begin_trial(self, files: tuple[SourceFile, ...], timeout_s: float) -> None:
        """Apply `files` now and undo it after `timeout_s`, unless `end_trial(keep=True)`."""
        async with self._pass_lock:
            begin = self._config.begin_trial
            await asyncio.to_thread(begin, files, timeout_s, self._clock())
            await self._pass()
        self._wake.set()

    async def end_trial(self, *, keep: bool) -> None:
        """:raises UserError: when nothing is on trial (it may just have run out)."""
        async with self._pass_lock:
            self._config.end_trial(keep=keep)
            await self._pass()

    async def drain(self, deadline_s: float) -> None:
        """Take nothing new here, and stop the engines when what runs has ended.

        :raises UserError: a client runs no engines, or it cannot be remembered.
        """
        if self._config.loaded.config.node.role is Role.CLIENT:
            raise UserError("a client runs no engines, so there is nothing to drain")
        await self._change_drain(lambda: self._drain.begin(deadline_s))

    async def undrain(self) -> None:
        """Serve again. What is taking leave just now does so, and comes back."""
        await self._change_drain(self._drain.end)

    async def _change_drain(self, change: Callable[[], None]) -> None:
        async with self._pass_lock:
            await asyncio.to_thread(change)
            await self._pass()
        self._wake.set()

    # -- the loop -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until `ask_stop`.

        :raises ConfigError: the configuration is bad and there is no good generation.
        """
        await asyncio.to_thread(self._config.boot)
        changes = asyncio.create_task(self._follow_applier(), name="follow applier")
        try:
            async with self._pass_lock:
                await self._ask_adopted()
                await self._pass()
            await self._mesh.settle()
            await self._ready()
            self._notifier.ready()
            while not self._stop_asked.is_set():
                await self._wait()
                if self._stop_asked.is_set():
                    break
                await self._turn()
        finally:
            self._notifier.stopping()
            changes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await changes
            await self._health.close()
            await self._splits.close()
            await self._shards.close()
            await self._mesh.close()

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
            self._config.expire_trial(self._clock())
            await self._pass()

    async def _wait(self) -> None:
        interval_s = PASS_INTERVAL_S
        if self._notifier.watchdog_interval_s:
            interval_s = min(interval_s, self._notifier.watchdog_interval_s / 3)
        share = self._proposal.share if self._proposal else None
        if share is not None and share.again_s is not None:
            interval_s = min(interval_s, share.again_s)
        for again_s in (self._drain.again_s(), self._revivals.again_s()):
            if again_s is not None:
                interval_s = min(interval_s, again_s)
        if self._config.trial:
            interval_s = min(interval_s, max(0.0, self._config.trial.ends_s - self._clock()))
        await self._stops_within(_PASS_GAP_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), interval_s)
        self._wake.clear()

    async def _stops_within(self, time_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop_asked.wait(), time_s)

    async def _follow_applier(self) -> None:
        while True:
            await self._applier.changed()
            self._wake.set()

    # -- one pass -------------------------------------------------------------------------------

    async def _pass(self) -> None:
        await self._look_and_act()
        self._notifier.watchdog()

    async def _look_and_act(self) -> None:
        loaded = self._config.loaded
        await self._mesh.follow(loaded.config)
        self._mesh.drain(self._drain.now.until_s if self._drain.now else None)
        self._drain.look(self._mesh.busy())
        try:
            proposal = await self._propose(loaded)
            self._blind = ""
        except UserError as error:
            # What runs goes on; only without any earlier picture is there nothing to go by.
            if self._proposal is None:
                raise
            self._blind = f"cannot see what runs: {error}"
            _log.error(self._blind)
            self._publish(loaded, self._proposal)
            return
        peers = self._peer_door(loaded)
        doors = await self._listen(loaded.config), peers
        proposal = await self._carry_out(proposal, doors)
        self._proposal = proposal
        self._running, self._lent = proposal.running, proposal.lent
        self._mesh.took(proposal)
        self._splits.took(proposal, self._mesh.ways())
        self._shards.took(proposal, self._mesh.ways())
        self._loads.look(proposal, self._health.ready)
        self._health.watch(self._watched(proposal.engines), works(proposal, self._loads.times))
        self._door_error = await self._open_doors(loaded, peers)
        self._publish(loaded, proposal)

    async def _propose(self, loaded: Loaded) -> Proposal:
        observation = await self._observer(loaded, self._mesh.sought(loaded.config))
        engines = await self._applier.observe()
        running = pipeline.with_residency(self._running, engines, self._health.ready)
        revival = self._revivals.look(running, engines, self._health.verdict)
        now = pipeline.engines_now(
            running,
            engines,
            self._proposal,
            self._carry_out.errors,
            revival,
            self._loads.progress(),
        )
        around = self._mesh.around(now)
        if around is not None:
            ways = self._mesh.ways()
            addresses = ways.addresses if ways is not None else {}
            splits = self._splits.now(running, self._lent, around.view, addresses)
            around = replace(
                around, load_times=self._loads.times, splits=splits, shards=self._shards.now()
            )
        given_up: frozenset[str] = frozenset()
        if around is None:
            models = [model.name for model in loaded.config.models]
            given_up = may_stop(self._drain.now, models, self._mesh.busy(), self._clock())
        # Many layouts of a large model that does not fit are seconds of work.
        return await asyncio.to_thread(
            pipeline.propose,
            loaded.config,
            observation,
            engines,
            running,
            self._paths,
            around,
            given_up,
            revival,
        )

    async def _open_doors(self, loaded: Loaded, peers: tuple[str, ...]) -> str:
        try:
            await self._serve(loaded, peers)
        except UserError as error:
            if str(error) != self._door_error:
                _log.error("cannot listen", error=str(error))
            return str(error)
        return ""

    def _peer_door(self, loaded: Loaded) -> tuple[str, ...]:
        """Where other nodes reach this one: a client and a lonely node have no such door."""
        config = loaded.config
        if self._mesh.ways() is None or config.node.role is Role.CLIENT:
            return ()
        return (config.mesh.listen,)

    async def _ask_adopted(self) -> None:
        """Engines that outlived us serve, and hold memory: to be known before the first plan."""
        with contextlib.suppress(UserError):
            await self._health.ask(self._watched(await self._applier.observe()))

    def _watched(self, engines: tuple[EngineStatus, ...]) -> set[Watched]:
        return {
            Watched(
                status.unit,
                status.pid,
                self._paths.engine_socket(status.name),
                self._paths.guard_socket(status.name),
            )
            for status in engines
            # The others have no health of their own to ask for: a split's is its llama-server's.
            if status.kind is EngineKind.LLAMA
            if status.pid and status.state is EngineState.RUNNING
        }

    def _troubles(self) -> tuple[str, ...]:
        config = self._config
        doors = (self._door_error, self._publisher.table_error)
        return (config.fallback, config.rejected, self._blind, *doors, *self._carry_out.errors)

    def _publish(self, loaded: Loaded, proposal: Proposal) -> None:
        trial = self._config.trial
        ways = self._mesh.ways()
        status = said.node_status(
            loaded,
            proposal,
            self._health.ready,
            degraded=tuple(filter(None, self._troubles())),
            generation=self._carry_out.generation,
            trial_ends_s=trial.ends_s if trial else None,
            mesh=self._mesh.status(),
            ways=ways,
            drain=said.drain_status(
                self._drain.now, proposal, self._mesh.busy(), self._clock(), self._drain.cut
            ),
            verdicts=self._health.verdict,
            progress=self._loads.progress(),
        )
        self._publisher.publish(
            loaded, proposal, status, ways, on_trial=trial is not None, loads=self._loads.now()
        )
