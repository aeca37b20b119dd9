"""The brain against a pretended world: its ports are simple, its pipeline is the real one."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web

from meshd.config.load import ConfigError, Loaded, SourceFile, parse_layers
from meshd.engine.build import Binary, EngineBuild
from meshd.errors import UserError
from meshd.gateway.routes import ModelState, RoutingTable
from meshd.generations import Generation
from meshd.mesh_port import Mesh
from meshd.notify import Notifier
from meshd.paths import under
from meshd.pipeline import Observation, Sought, with_residency
from meshd.planner.lent import Lent
from meshd.planner.plan import Decision, Strategy
from meshd.planner.view import Candidate, Running
from meshd.progress import Reply, Sample
from meshd.supervisor import Supervisor
from meshd.units.diff import ActionKind, changes, diff
from meshd.units.render import render_dropin
from meshd.units.spec import Desired, EngineKind, EngineSpec, EngineState, EngineStatus, Outcome
from tests.unit.worlds import facts, hardware

HELP = (Path(__file__).parent / "help/llama-server-0.7.0.txt").read_text("utf-8")
BUILD = EngineBuild(
    origin="system",
    root="/",
    build=11669,
    version="0.7.0",
    package="",
    ggml="0.27.0",
    rpc_protocol=(8, 0, 0),
    binaries=(Binary("llama-server", "/usr/bin/llama-server", "0" * 64),),
    backends=("CPU", "RPC"),
    help_text=HELP,
)

ONE = "models: [{name: a, source: a.gguf, slots: 2, context: 4096}]\n"
TWO = ONE.replace("]", ", {name: b, source: b.gguf, slots: 1, context: 4096}]")


@dataclass
class World:
    """Disk, machine and processes as the ports show them, in memory."""

    root: Path
    text: str = ONE
    good: list[Generation] = field(default_factory=list)
    kept_running: tuple[tuple[Running, ...], int, tuple[Lent, ...]] = ((), 0, ())
    tables: list[RoutingTable] = field(default_factory=list)
    engines: dict[str, EngineStatus] = field(default_factory=dict)
    done: list[tuple[str, str]] = field(default_factory=list)
    next_pid: int = 100
    apply_error: str = ""
    now_s: float = 1000.0
    build: EngineBuild = BUILD
    news: asyncio.Event = field(default_factory=asyncio.Event)
    sent: list[str] = field(default_factory=list)

    # -- Memory ---------------------------------------------------------------------------------
    def files(self) -> tuple[SourceFile, ...]:
        return (SourceFile("/etc/mesh/mesh.yaml", self.text),)

    def load_config(self) -> Loaded:
        return parse_layers(self.files())

    def parse(self, files: tuple[SourceFile, ...]) -> Loaded:
        return parse_layers(files)

    def last_good(self) -> list[Generation]:
        return self.good

    def save_good(self, files: tuple[SourceFile, ...], summary: str) -> None:
        if not self.good or self.good[0].files != files:
            self.good.insert(0, Generation(len(self.good) + 1, 0.0, files, summary))

    def load_running(self) -> tuple[tuple[Running, ...], int, tuple[Lent, ...]]:
        return self.kept_running

    def save_running(
        self, running: tuple[Running, ...], generation: int, lent: tuple[Lent, ...] = ()
    ) -> None:
        self.kept_running = (running, generation, lent)

    def load_routes(self) -> RoutingTable | None:
        return None

    def write_routes(self, table: RoutingTable) -> None:
        self.tables.append(table)

    # -- Observer -------------------------------------------------------------------------------
    async def __call__(self, loaded: Loaded, sought: tuple[Sought, ...] = ()) -> Observation:
        found = tuple(
            Candidate(model.name, facts(layers=4), identity=model.name)
            for model in loaded.config.models
        )
        return Observation(hardware(), self.build, "", found)

    # -- Applier --------------------------------------------------------------------------------
    def render(self, spec: EngineSpec) -> str:
        return render_dropin(spec, under(self.root))

    async def apply(self, desired: Desired) -> Outcome:
        if self.apply_error:
            return Outcome(desired.generation, errors=(self.apply_error,))
        wanted = {spec.unit: spec for spec in desired.engines}
        running = [one for one in self.engines.values() if one.unit not in desired.leave]
        for action in changes(diff(running, desired.engines, self.render)):
            self.done.append((action.kind, action.unit))
            self.engines.pop(action.unit, None)
            if action.kind is not ActionKind.STOP:
                self.start(wanted[action.unit])
        return Outcome(desired.generation)

    def start(self, spec: EngineSpec) -> None:
        self.next_pid += 1
        self.engines[spec.unit] = EngineStatus(
            spec.kind, spec.name, EngineState.RUNNING, self.render(spec), self.next_pid
        )

    async def observe(self) -> tuple[EngineStatus, ...]:
        return tuple(self.engines.values())

    async def changed(self) -> None:
        await self.news.wait()
        self.news.clear()

    async def close(self) -> None:
        pass


class RecordingNotifier(Notifier):
    """Keeps what would have been sent to systemd."""

    def __init__(self, sent: list[str]) -> None:
        super().__init__(environment={})
        self._sent = sent

    def _send(self, *lines: str) -> None:
        self._sent.append(" ".join(lines))


@asynccontextmanager
async def brain(world: World, mesh: Mesh | None = None) -> AsyncIterator[Supervisor]:
    """A running supervisor, past its first pass."""
    started = asyncio.Event()

    async def ready() -> None:
        started.set()

    async def serve(_: Loaded, peers: tuple[str, ...]) -> None:
        pass

    supervisor = Supervisor(
        under(world.root),
        applier=world,
        observer=world,
        memory=world,
        notifier=RecordingNotifier(world.sent),
        serve=serve,
        ready=ready,
        mesh=mesh,
        clock=lambda: world.now_s,
    )
    task = asyncio.create_task(supervisor.run())
    try:
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        waiting.cancel()
        if task.done():
            task.result()
        yield supervisor
    finally:
        supervisor.ask_stop()
        await asyncio.gather(task, return_exceptions=True)


def answers(supervisor: Supervisor) -> None:
    """As if each engine had said that it is ready."""
    for engine in supervisor._health._tasks:
        supervisor._health._take(engine, Sample(time.monotonic(), Reply.READY))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_first_pass_starts_what_is_wanted_then_says_ready(world: World) -> None:
    async with brain(world) as supervisor:
        await until(lambda: "READY=1" in world.sent)
        assert world.done == [("start", "mesh-llama@a.service")]
        assert world.tables[-1].routes[0].state is ModelState.LOADING
        assert supervisor.status().models[0].slots == 2
        assert world.sent.index("READY=1") > 0


async def test_reload_restarts_only_what_changed(world: World) -> None:
    world.text = TWO
    async with brain(world) as supervisor:
        pids = {unit: status.pid for unit, status in world.engines.items()}
        world.done.clear()
        world.text = TWO.replace("slots: 1", "slots: 3")
        await supervisor.reload()
        assert world.done == [("restart", "mesh-llama@b.service")]
        assert world.engines["mesh-llama@a.service"].pid == pids["mesh-llama@a.service"]


async def test_what_engines_do_not_show_restarts_none(world: World) -> None:
    async with brain(world) as supervisor:
        world.done.clear()
        world.text = ONE + "console: {listen: '127.0.0.1:4141'}\n"
        await supervisor.reload()
        assert world.done == []
        assert supervisor.status().console == "127.0.0.1:4141"


async def test_a_bad_reload_changes_nothing_and_is_said(world: World) -> None:
    async with brain(world) as supervisor:
        await until(lambda: "READY=1" in world.sent)
        world.done.clear()
        world.sent.clear()
        world.text = "models: [{nam: a}]\n"
        supervisor.ask_reload()
        await until(lambda: "READY=1" in world.sent)
        assert world.done == []
        assert world.sent[0].startswith("RELOADING=1 MONOTONIC_USEC=")
        assert any("reload rejected" in line for line in supervisor.status().degraded)
        world.text = ONE
        await supervisor.reload()
        assert supervisor.status().degraded == ()


async def test_a_restarted_brain_adopts_what_runs(world: World) -> None:
    async with brain(world):
        pass
    world.done.clear()
    async with brain(world) as supervisor:
        assert world.done == []
        assert supervisor.status().models[0].pid == 101


async def test_a_brain_that_forgot_the_plan_still_adopts(world: World) -> None:
    async with brain(world):
        pass
    world.done.clear()
    world.kept_running = ((), 0, ())
    async with brain(world):
        assert world.done == []


async def test_a_bad_file_at_boot_starts_the_last_good_generation(world: World) -> None:
    world.good = [Generation(7, 0.0, world.files())]
    world.text = "models: [\n"
    async with brain(world) as supervisor:
        assert world.done == [("start", "mesh-llama@a.service")]
        (line,) = supervisor.status().degraded
        assert "generation 7" in line
        assert "mesh.yaml" in line


async def test_a_bad_file_with_no_good_generation_refuses_to_start(world: World) -> None:
    world.text = "models: [\n"
    with pytest.raises(ConfigError):
        async with brain(world):
            pass


async def test_only_a_served_configuration_becomes_a_generation(world: World) -> None:
    async with brain(world) as supervisor:
        await until(lambda: "READY=1" in world.sent)
        assert world.good == []
        answers(supervisor)
        await supervisor.reload()
        assert [generation.files for generation in world.good] == [world.files()]


async def test_a_trial_runs_out_and_everything_is_as_before(world: World) -> None:
    async with brain(world) as supervisor:
        files = (SourceFile("/etc/mesh/mesh.yaml", TWO),)
        await supervisor.begin_trial(files, 60.0)
        assert set(world.engines) == {"mesh-llama@a.service", "mesh-llama@b.service"}
        assert supervisor.trial() == files
        world.now_s += 61
        world.news.set()
        await until(lambda: set(world.engines) == {"mesh-llama@a.service"})
        assert supervisor.trial() is None
        assert world.engines["mesh-llama@a.service"].pid == 101
        with pytest.raises(UserError, match="nothing is on trial"):
            await supervisor.end_trial(keep=True)


async def test_a_kept_trial_stays(world: World) -> None:
    async with brain(world) as supervisor:
        await supervisor.begin_trial((SourceFile("/etc/mesh/mesh.yaml", TWO),), 60.0)
        await supervisor.end_trial(keep=True)
        world.now_s += 3600
        world.news.set()
        await asyncio.sleep(0)
        await supervisor.preview(world.files())
        assert len(world.engines) == 2


async def test_a_bad_trial_is_refused_before_anything_happens(world: World) -> None:
    async with brain(world) as supervisor:
        world.done.clear()
        with pytest.raises(ConfigError):
            await supervisor.begin_trial((SourceFile("x.yaml", "models: 3"),), 60.0)
        with pytest.raises(UserError, match="seconds"):
            await supervisor.begin_trial(world.files(), 0.0)
        assert world.done == []
        assert supervisor.trial() is None


async def test_a_preview_changes_nothing(world: World) -> None:
    async with brain(world) as supervisor:
        world.done.clear()
        report = await supervisor.preview((SourceFile("/etc/mesh/mesh.yaml", TWO),))
        assert [(c.action, c.unit) for c in report.changes] == [("start", "mesh-llama@b.service")]
        assert world.done == []


async def test_a_dead_engine_leaves_the_routing_table(world: World) -> None:
    async with brain(world) as supervisor:
        answers(supervisor)
        await supervisor.reload()
        assert world.tables[-1].routes[0].targets[0].ready
        unit = "mesh-llama@a.service"
        world.engines[unit] = replace(
            world.engines[unit], state=EngineState.BACKOFF, pid=None, detail="exit code 139"
        )
        world.news.set()
        await until(lambda: not world.tables[-1].routes[0].targets[0].ready)
        assert world.tables[-1].routes[0].state is ModelState.FAILED
        assert "139" in world.tables[-1].routes[0].detail


async def test_what_the_hand_refuses_is_said_and_tried_again(world: World) -> None:
    world.apply_error = "mesh-llama@a.service: refused"
    async with brain(world) as supervisor:
        assert supervisor.status().degraded == (world.apply_error,)
        world.apply_error = ""
        world.news.set()
        await until(lambda: supervisor.status().degraded == ())
        assert set(world.engines) == {"mesh-llama@a.service"}


async def test_the_watchdog_is_fed_only_after_a_pass(world: World) -> None:
    async with brain(world):
        await until(lambda: "READY=1" in world.sent)
        before = world.sent.count("WATCHDOG=1")
        world.news.set()
        await until(lambda: world.sent.count("WATCHDOG=1") > before)
        blocked = asyncio.Event()

        async def hang() -> tuple[EngineStatus, ...]:
            await blocked.wait()
            return ()

        world.observe = hang  # type: ignore[method-assign]
        fed = world.sent.count("WATCHDOG=1")
        world.news.set()
        await asyncio.sleep(0.2)
        assert world.sent.count("WATCHDOG=1") == fed
        blocked.set()


async def test_a_blind_pass_stops_nothing_and_heals(world: World) -> None:
    async with brain(world) as supervisor:
        await until(lambda: "READY=1" in world.sent)
        world.done.clear()
        see = world.observe

        async def blind() -> tuple[EngineStatus, ...]:
            raise UserError("no connection to systemd")

        world.observe = blind  # type: ignore[method-assign]
        world.news.set()
        await until(lambda: any("no connection" in line for line in supervisor.status().degraded))
        world.observe = see  # type: ignore[method-assign]
        world.news.set()
        await until(lambda: supervisor.status().degraded == ())
        assert world.done == []


async def test_what_cannot_be_seen_after_a_change_does_not_end_the_brain(world: World) -> None:
    async with brain(world) as supervisor:
        see = world.observe
        before = len(world.done)

        async def blind_after_a_change() -> tuple[EngineStatus, ...]:
            if len(world.done) > before:
                raise UserError("the connection was lost")
            return await see()

        world.observe = blind_after_a_change  # type: ignore[method-assign]
        world.text = TWO
        await supervisor.reload()
        assert any("the connection was lost" in line for line in supervisor.status().degraded)
        world.observe = see  # type: ignore[method-assign]
        world.news.set()
        await until(lambda: supervisor.status().degraded == ())
        assert len(world.engines) == 2


async def test_a_full_disk_does_not_end_the_brain(world: World) -> None:
    write = world.write_routes

    def full(_: RoutingTable) -> None:
        raise OSError(28, "No space left on device")

    world.write_routes = full  # type: ignore[method-assign]
    async with brain(world) as supervisor:
        world.news.set()
        await until(lambda: any("No space left" in line for line in supervisor.status().degraded))
        assert world.tables == []
        world.write_routes = write  # type: ignore[method-assign]
        world.news.set()
        await until(lambda: supervisor.status().degraded == ())
        assert [route.model for route in world.tables[-1].routes] == ["a"]


async def test_a_stop_does_not_wait_for_the_hand(world: World) -> None:
    begun = asyncio.Event()

    async def no_answer(_: Desired) -> Outcome:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with brain(world) as supervisor:
        world.apply = no_answer  # type: ignore[method-assign]
        world.text = TWO
        supervisor.ask_reload()
        await asyncio.wait_for(begun.wait(), 10)
        asked_s = time.monotonic()
    assert time.monotonic() - asked_s < 5


@dataclass
class Listener:
    """An engine's socket. :ivar silent: it takes connections and says nothing."""

    silent: bool = False

    async def well(self, _: web.Request) -> web.Response:
        if self.silent:
            await asyncio.sleep(60)
        return web.json_response({"status": "ok"})


@asynccontextmanager
async def listener(world: World) -> AsyncIterator[Listener]:
    one = Listener()
    socket = under(world.root).engine_socket("a")
    socket.parent.mkdir(parents=True)
    app = web.Application()
    app.router.add_get("/health", one.well)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield one
    finally:
        await runner.cleanup()


async def test_a_restarted_brain_goes_on_routing(world: World) -> None:
    async with listener(world):
        async with brain(world):
            await until(lambda: world.tables[-1].routes[0].targets[0].ready)
        world.tables.clear()
        async with brain(world):
            pass
        assert [table.routes[0].targets[0].ready for table in world.tables] == [True]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of silence is much."""
    monkeypatch.setattr("meshd.progress.SILENCE_S", 0.5)
    monkeypatch.setattr("meshd.health._DEADLINE_S", 0.2)
    monkeypatch.setattr("meshd.health._READY_INTERVAL_S", 0.2)


@pytest.mark.usefixtures("impatient")
async def test_an_engine_that_hangs_is_restarted_and_a_restarted_brain_leaves_it_alone(
    world: World,
) -> None:
    unit = "mesh-llama@a.service"
    async with listener(world) as engine:
        async with brain(world):
            await until(lambda: world.tables[-1].routes[0].targets[0].ready)
            pid, text = world.engines[unit].pid, world.engines[unit].text
            engine.silent = True
            await until(lambda: ("restart", unit) in world.done)
            engine.silent = False
            assert world.engines[unit].pid != pid
            assert world.engines[unit].text != text
            await until(lambda: world.tables[-1].routes[0].targets[0].ready)
        world.done.clear()
        async with brain(world):
            await until(lambda: world.tables[-1].routes[0].targets[0].ready)
        assert world.done == []


@pytest.mark.usefixtures("impatient")
async def test_an_engine_that_hangs_again_and_again_is_stopped_and_that_is_said(
    world: World,
) -> None:
    unit = "mesh-llama@a.service"
    async with listener(world) as engine, brain(world) as supervisor:

        async def hang() -> None:
            engine.silent = False
            await until(lambda: world.tables[-1].routes[0].targets[0].ready)
            engine.silent = True
            await until(lambda: not world.tables[-1].routes[0].targets[0].ready)
            world.now_s += 60
            supervisor.wake()

        for number in range(1, 4):
            await hang()
            await until(lambda: world.done.count(("restart", unit)) == number)  # noqa: B023
        await hang()
        await until(lambda: world.done[-1] == ("stop", unit))
        (model,) = supervisor.status().models
        assert model.state is ModelState.FAILED
        assert "hung 4 times in a row" in model.detail
        assert "tried again later" in model.detail
        world.now_s += 300
        supervisor.wake()
        await until(lambda: world.done[-1] == ("start", unit))


def memory_max(engine: EngineStatus) -> int:
    found = re.search(r"^MemoryMax=([0-9]+)$", engine.text, re.MULTILINE)
    assert found
    return int(found[1])


async def test_an_engine_that_runs_out_of_memory_gets_a_smaller_plan(world: World) -> None:
    world.text = ONE.replace(", slots: 2, context: 4096", "")
    unit = "mesh-llama@a.service"
    async with brain(world) as supervisor:
        first = supervisor.status().models[0].memory_bytes
        allowed = memory_max(world.engines[unit])
        for restarts in range(3):
            assert ("restart", unit) not in world.done
            world.engines[unit] = replace(
                world.engines[unit],
                state=EngineState.BACKOFF,
                restarts=restarts,
                detail="oom-kill: SIGKILL",
            )
            await supervisor.reload()
        assert ("restart", unit) in world.done
        assert supervisor.status().models[0].memory_bytes < first
        # The room that this leaves is for what was not foreseen.
        assert memory_max(world.engines[unit]) == pytest.approx(allowed, rel=0.01)


async def test_a_pass_for_the_command_line_feeds_the_watchdog_too(world: World) -> None:
    async with brain(world) as supervisor:
        await until(lambda: "READY=1" in world.sent)
        async with supervisor._pass_lock:
            pass
        before = world.sent.count("WATCHDOG=1")
        await supervisor.reload()
        assert world.sent.count("WATCHDOG=1") > before


def test_what_no_longer_runs_is_not_held_to_its_old_plan() -> None:
    def running(name: str) -> Running:
        return Running(Decision(name, Strategy.SOLO_CPU), name, resident=True)

    def engine(name: str, state: EngineState) -> EngineStatus:
        return EngineStatus(EngineKind.LLAMA, name, state, "text", pid=7)

    left = with_residency(
        (running("gone"), running("stopped"), running("waits"), running("runs")),
        (
            engine("stopped", EngineState.STOPPED),
            engine("waits", EngineState.BACKOFF),
            engine("runs", EngineState.RUNNING),
        ),
        lambda unit, _: "runs" in unit,
    )
    assert [(one.decision.model, one.resident, one.loading) for one in left] == [
        ("waits", False, True),
        ("runs", True, False),
    ]


async def test_a_model_that_waits_for_memory_does_not_keep_a_configuration_from_being_good(
    world: World,
) -> None:
    world.text = ONE.replace("]", ", {name: big, source: big.gguf, context: 32768, slots: 64}]")
    async with brain(world) as supervisor:
        answers(supervisor)
        await supervisor.reload()
        states = {model.name: model.state for model in supervisor.status().models}
        assert states == {"a": ModelState.READY, "big": ModelState.WAITING}
        assert not supervisor.status().healthy
        assert [generation.files for generation in world.good] == [world.files()]


async def test_what_a_new_engine_cannot_be_told_stops_nothing_that_runs(world: World) -> None:
    async with brain(world) as supervisor:
        world.done.clear()
        world.build = replace(BUILD, help_text=HELP.replace("--parallel", "--gone"))
        await supervisor.reload()
        assert world.done == []
        assert any("slots" in line for line in supervisor.status().degraded)


async def test_only_a_llama_server_is_asked_for_its_health(world: World) -> None:
    """The other units of a split have no such socket, or one of the same name."""
    units = tuple(
        EngineStatus(kind, "a", EngineState.RUNNING, "text", pid=7) for kind in EngineKind
    )
    async with brain(world) as supervisor:
        assert [one.unit for one in supervisor._watched(units)] == ["mesh-llama@a.service"]
