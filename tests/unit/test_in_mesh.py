"""A brain in a mesh of which it hears what each test says: the session alone is pretended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshd.config.load import Loaded
from meshd.config.settings import MeshSettings
from meshd.gateway.routes import ModelState
from meshd.gateway.traffic import ModelTraffic, TrafficReport
from meshd.health import HealthMonitor
from meshd.in_mesh import InMesh
from meshd.instance import instance_name
from meshd.joined import Joined
from meshd.mesh.record import Assignment, DoctorSummary, NodeRecord, Stage, Wish
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.own_record import Self
from meshd.paths import under
from meshd.pipeline import Observation, Sought
from meshd.planner.view import Candidate
from meshd.supervisor import Supervisor
from tests.unit.test_supervisor import RecordingNotifier, World
from tests.unit.worlds import GIB, facts, hardware

ME = "mmmmmmmmmmmmmmmm"
OTHER = "oooooooooooooooo"
B_UNIT = "mesh-llama@b.service"


@dataclass
class HeardOf:
    """The `MeshSession` as far as a brain uses it; what others say stands in `others`."""

    others: tuple[NodeRecord, ...] = ()
    dead: tuple[NodeRecord, ...] = ()
    own: NodeRecord | None = None
    demand: bytes | None = None
    core: bool = False
    searched: bool = True
    problem: str = ""
    revoked: frozenset[str] = frozenset()

    def view(self) -> MeshView:
        records = (*self.others, *((self.own,) if self.own else ()))
        members = tuple(
            MemberView(record.id, 1, Status.ALIVE, record)
            for record in sorted(records, key=lambda record: record.id)
        )
        return MeshView(ME, members, hash((members, self.dead)), self.dead)

    def publish(self, record: NodeRecord) -> None:
        self.own = record

    def publish_demand(self, data: bytes) -> None:
        self.demand = data

    def demand_entries(self) -> list[tuple[bytes, float]]:
        return [] if self.demand is None else [(self.demand, 0.0)]

    async def attached(self, timeout_s: float) -> bool:
        return True

    async def close(self, back_in_s: float | None) -> None:
        pass

    def stage(self, model: str) -> Stage | None:
        found = self.own.assignment(model) if self.own else None
        return found.stage if found else None


class Prober:
    """Measures nothing."""

    def follow(self, peers: object, serving: object) -> None:
        pass

    def best_address(self, node: str) -> str:
        return ""

    def records(self) -> tuple[()]:
        return ()


@dataclass
class MeshWorld(World):
    """A machine that has every model it is asked for, except `missing`."""

    missing: set[str] = field(default_factory=set)
    content: dict[str, str] = field(default_factory=dict)
    free_gib: float = 64
    layers: int = 4
    heard: HeardOf = field(default_factory=HeardOf)

    async def __call__(self, loaded: Loaded, sought: tuple[Sought, ...] = ()) -> Observation:
        names = [model.name for model in loaded.config.models] + [one.model for one in sought]
        found = tuple(
            Candidate(name, None, problem="not here") if name in self.missing else self.model(name)
            for name in names
        )
        machine = hardware(ram_gib=64)
        ram = replace(machine.ram, available_bytes=int(self.free_gib * GIB))
        return Observation(replace(machine, ram=ram), self.build, "", found)

    def model(self, name: str) -> Candidate:
        content = self.content.get(name, f"fp-{name}")
        # As large as it was, and elsewhere: else the engine's own text would not tell.
        found = replace(facts(layers=self.layers), files=(f"/models/{content}.gguf",))
        return Candidate(name, found, identity=content, fingerprint=content)


@asynccontextmanager
async def member(world: MeshWorld, *, early: bool = False) -> AsyncIterator[Supervisor]:
    """A running brain that is in the mesh already. :param early: it has only just joined."""
    started = asyncio.Event()

    async def restarting() -> bool:
        return True

    async def ready() -> None:
        started.set()

    async def serve(_: Loaded, peers: tuple[str, ...]) -> None:
        pass

    mesh = InMesh(
        under(world.root),
        lambda: supervisor.wake(),
        restarting=restarting,
        examine=DoctorSummary,
        clock=lambda: world.now_s,
    )
    mesh._joined = Joined(
        settings=MeshSettings(),
        lan=False,
        own=Self(ME, ("10.0.0.1:9338",), "s"),
        credentials=cast(Any, SimpleNamespace(mesh_id="m")),
        session=cast(Any, world.heard),
        prober=cast(Any, Prober()),
        tasks=(),
        since_s=world.now_s - (0 if early else 100),
        checked_s=world.now_s,
        looked_s=world.now_s + 1e6,
    )
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
        async with asyncio.timeout(10):
            await started.wait()
        yield supervisor
    finally:
        supervisor.ask_stop()
        await asyncio.gather(task, return_exceptions=True)


def other(*wishes: str) -> NodeRecord:
    return NodeRecord(
        OTHER,
        name="other",
        addresses=("10.0.0.2:9338",),
        wishes=tuple(Wish(name, f"/elsewhere/{name}.gguf") for name in wishes),
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeshWorld:
    monkeypatch.setattr(HealthMonitor, "ready", lambda self, unit, pid: True)
    return MeshWorld(tmp_path, text="models: []\n")


async def passes(world: MeshWorld, supervisor: Supervisor, time_s: float) -> None:
    """Let the brain look again and again for `time_s` of its own clock."""
    for _ in range(int(time_s / 0.5)):
        world.now_s += 0.5
        async with supervisor._pass_lock:
            await supervisor._pass()


async def test_a_restarted_brain_keeps_what_only_others_name(world: MeshWorld) -> None:
    world.heard.others = (other("b"),)
    async with member(world) as supervisor:
        await passes(world, supervisor, 5)
        assert world.heard.stage("b") is Stage.READY
    pid = world.engines[B_UNIT].pid
    world.done.clear()
    # Its next life has heard of nobody yet.
    known, world.heard = world.heard.others, HeardOf()
    async with member(world, early=True) as supervisor:
        await passes(world, supervisor, 1)
        assert world.heard.stage("b") is Stage.READY
        (route,) = world.tables[-1].routes
        assert (route.model, route.state) == ("b", ModelState.READY)
        assert [target.ready for target in route.targets] == [True]
        world.heard.others = known
        await passes(world, supervisor, 10)
        assert world.heard.stage("b") is Stage.READY
    assert world.done == []
    assert world.engines[B_UNIT].pid == pid


async def test_what_nobody_names_any_more_ends_when_its_answers_have(world: MeshWorld) -> None:
    world.heard.others = (other("b"),)
    async with member(world) as supervisor:
        await passes(world, supervisor, 5)
        busy = TrafficReport("g", (ModelTraffic("b", requests=1, in_flight=1),))
        supervisor.mesh.count(busy)
        world.heard.others = (other(),)
        await passes(world, supervisor, 20)
        assert world.heard.stage("b") is Stage.DRAINING
        assert B_UNIT in world.engines
        (route,) = world.tables[-1].routes
        assert route.targets == ()
        supervisor.mesh.count(replace(busy, models=(ModelTraffic("b", requests=1),)))
        await passes(world, supervisor, 2)
        assert world.heard.stage("b") is None
        assert B_UNIT not in world.engines


async def test_the_first_request_loads_a_model_that_nobody_needed(world: MeshWorld) -> None:
    world.text = "models: [{name: a, source: a.gguf, replicas: {min: 0}}]\n"
    async with member(world) as supervisor:
        await passes(world, supervisor, 5)
        assert world.heard.stage("a") is None
        supervisor.mesh.count(TrafficReport("g", (ModelTraffic("a", requests=1, misses=1),)))
        await passes(world, supervisor, 0.5)
        assert world.heard.stage("a") is Stage.CLAIMED, "told in the pass that the miss woke"
        await passes(world, supervisor, 2)
        assert world.heard.stage("a") is Stage.READY


async def test_an_engine_that_cannot_be_started_is_no_engine_that_loads(world: MeshWorld) -> None:
    world.heard.others = (other("b"),)
    world.apply_error = f"{B_UNIT}: not in the folders that /etc/mesh allows"
    async with member(world) as supervisor:
        await passes(world, supervisor, 5)
        assert world.heard.own is not None
        failed = world.heard.own.assignment("b")
        assert failed is not None
        assert (failed.stage, failed.detail) == (Stage.FAILED, world.apply_error)
        world.apply_error = ""
        await passes(world, supervisor, 2)
        assert world.heard.stage("b") is Stage.READY


async def test_names_that_no_configuration_could_have_are_nobodys_models(world: MeshWorld) -> None:
    long = "x" * 50
    twin = instance_name(long)
    hostile = ("--model", "a b", "Ü", "%n", "../x", "$(id)", "A", "a" * 64)
    world.heard.others = (other(*hostile, long, twin),)
    async with member(world) as supervisor:
        await passes(world, supervisor, 10)
        assert list(world.engines) == [f"mesh-llama@{twin}.service"]
        names = {one.name for one in supervisor.status().models}
        assert names == {long, twin}
        (refused,) = supervisor.status().degraded
        assert "another model's engine has this name" in refused


async def test_absurd_shapes_are_planned_as_if_nothing_was_said(world: MeshWorld) -> None:
    most = 2**63 - 1
    absurd = Wish("b", "b.gguf", context=most, slots=most, least=most, most=most, aliases=("b",))
    world.heard.others = (replace(other(), wishes=(absurd,)),)
    async with member(world) as supervisor:
        await passes(world, supervisor, 5)
        assert world.heard.stage("b") is Stage.READY
        assert supervisor.status().models[0].slots == 4


async def test_to_name_what_runs_already_restarts_nothing(world: MeshWorld) -> None:
    world.heard.others = (other("b"),)
    async with member(world) as supervisor:
        await passes(world, supervisor, 5)
        world.done.clear()
        # Since it was planned, memory has gone to something else.
        world.free_gib = 3
        world.text = "models: [{name: b, source: b.gguf}]\n"
        await supervisor.reload()
        await passes(world, supervisor, 5)
        assert world.done == []


async def test_a_file_that_was_replaced_is_loaded_once(world: MeshWorld) -> None:
    world.text = "models: [{name: a, source: a.gguf}]\n"
    async with member(world) as supervisor:
        await passes(world, supervisor, 5)
        world.done.clear()
        world.content["a"] = "fp-new"
        await passes(world, supervisor, 5)
        assert world.heard.own is not None
        (runs,) = world.heard.own.assignments
        assert (runs.stage, runs.fingerprint) == (Stage.READY, "fp-new")
        assert world.done == [("restart", "mesh-llama@a.service")]


async def test_a_long_context_leaves_room_for_what_may_have_to_be_taken_over(
    world: MeshWorld,
) -> None:
    world.layers, world.free_gib = 32, 28
    serves = replace(other("a", "b"), assignments=(Assignment("b", "fp-b", Stage.READY),))
    world.heard.others = (serves,)
    async with member(world) as supervisor:
        await passes(world, supervisor, 5)
        assert world.heard.stage("a") is Stage.READY
        assert world.heard.stage("b") is None
        (runs,) = (one for one in supervisor.status().models if one.name == "a")
        assert runs.context >= 8192
        # Its weights are file pages, which the kernel counts as available.
        world.free_gib -= runs.memory_bytes / GIB - 4
        # Then the other one is gone, and what it named is wanted still.
        world.heard.others, world.heard.dead = (), (replace(serves, assignments=()),)
        await passes(world, supervisor, 10)
        assert world.heard.stage("a") is Stage.READY
        assert world.heard.stage("b") is Stage.READY
