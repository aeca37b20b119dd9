"""Draining a node: what the mesh's plan makes of it, and what a node does that is alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meshd.config.settings import Role
from meshd.drain import Drain, may_stop
from meshd.drain_order import DrainOrder
from meshd.errors import UserError
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target, decode, encode
from meshd.gateway.traffic import ModelTraffic, TrafficReport
from meshd.mesh.demand import DemandCounter
from meshd.mesh.record import Stage
from meshd.mesh_port import Alone
from meshd.mesh_routes import Ways, with_mesh
from meshd.planner.mesh_plan import releases
from meshd.planner.plan import Code
from meshd.planner.replicas import place_replicas
from tests.unit.planner_mesh.meshes import mesh, node, offer, runs, where, wish
from tests.unit.test_mesh_share import Box, Lab, box
from tests.unit.test_supervisor import TWO, World, brain, until

LONG_S = 1000.0


# -- the mesh's plan ----------------------------------------------------------------------------


def _member(name: str, *, stage: Stage | None = None, draining: bool = False, **more: object):  # type: ignore[no-untyped-def]
    running = () if stage is None else (runs("m", stage),)
    return node(name, offer("m"), wishes=(wish("m"),), running=running, draining=draining, **more)  # type: ignore[arg-type]


def test_nothing_new_is_placed_on_a_node_that_is_drained() -> None:
    plan = place_replicas(mesh(_member("a", draining=True), _member("b")), {})
    assert where(plan, "m") == ["b"]
    (excluded,) = plan.placements[0].excluded
    assert excluded.code is Code.DRAINED_NODE


def test_a_claim_of_a_node_that_is_drained_counts_no_more() -> None:
    view = mesh(_member("a", stage=Stage.CLAIMED, draining=True), _member("b"))
    assert where(place_replicas(view, {}), "m") == ["b"]


def test_what_runs_there_stays_until_a_successor_answers() -> None:
    drained = _member("a", stage=Stage.READY, draining=True)
    begun = place_replicas(mesh(drained, _member("b")), {})
    assert where(begun, "m") == ["b", "a"]
    assert releases(begun, "id-a") == ()
    loading = place_replicas(mesh(drained, _member("b", stage=Stage.LOADING)), {})
    assert releases(loading, "id-a") == ()
    answers = place_replicas(mesh(drained, _member("b", stage=Stage.READY)), {})
    assert [release.text for release in releases(answers, "id-a")] == ["it is being drained"]


def test_a_standby_is_promoted_for_it() -> None:
    view = mesh(_member("a", stage=Stage.READY, draining=True), _member("b", role="standby"))
    assert where(place_replicas(view, {}), "m") == ["b", "a"]


def test_what_nobody_else_can_serve_takes_leave_at_once_and_says_why() -> None:
    plan = place_replicas(mesh(_member("a", stage=Stage.READY, draining=True)), {})
    assert len(releases(plan, "id-a")) == 1
    placement = plan.placements[0]
    assert placement.blockers[0].code is Code.DRAINED_NODE
    assert "--undo" in placement.next_step


# -- a node's share -----------------------------------------------------------------------------


def _busy(one: Box, requests: int) -> None:
    report = TrafficReport("boot", (ModelTraffic("a", in_flight=requests),))
    one.deeds.count(report, DemandCounter(now=0.0))


def _serving(lab: Lab) -> Box:
    (name,) = lab.serving("a")
    return lab.boxes[name]


def test_another_node_takes_over_and_the_engine_stops_when_its_answers_have_ended() -> None:
    lab = Lab(box("n1", "a"), box("n2", "a"))
    lab.run(10)
    first = _serving(lab)
    _busy(first, 2)
    first.drain_until_s = first.now_s + LONG_S
    lab.run(2)
    assert lab.serving("a") == [first.id], "it serves until the other one can"
    lab.run(10)
    assert lab.serving("a") != [first.id]
    assert len(lab.serving("a")) == 1
    lab.run(100)
    assert "a" in first.engines, "two answers still run"
    _busy(first, 0)
    lab.run(2)
    assert first.engines == {}


def test_at_the_deadline_what_still_runs_is_cut() -> None:
    lab = Lab(box("n1", "a"), box("n2", "a"))
    lab.run(10)
    first = _serving(lab)
    _busy(first, 2)
    first.drain_until_s = first.now_s + 20
    lab.run(18)
    assert "a" in first.engines
    lab.run(4)
    assert first.engines == {}


def test_the_deadline_also_ends_what_no_successor_came_for() -> None:
    lab = Lab(box("n1", "a"), box("n2", "a"))
    lab.run(10)
    first = _serving(lab)
    (second,) = (one for one in lab.boxes.values() if one is not first)
    second.broken = True
    first.drain_until_s = first.now_s + 20
    lab.run(25)
    assert first.engines == {}
    assert first.shared is not None
    assert first.shared.record.assignments == ()


def test_an_undone_drain_brings_the_node_back() -> None:
    lab = Lab(box("n1", "a"), box("n2", "a", role=Role.STANDBY))
    lab.run(10)
    lab.boxes["n1"].drain_until_s = lab.boxes["n1"].now_s + LONG_S
    lab.run(10)
    assert lab.serving("a") == ["n2"]
    lab.boxes["n1"].drain_until_s = None
    lab.boxes["n2"].drain_until_s = LONG_S * 2
    lab.run(10)
    assert lab.serving("a") == ["n1"]


def test_an_engine_that_fails_is_not_tried_on_while_its_node_is_drained() -> None:
    lab = Lab(box("n1", "a"))
    lab.boxes["n1"].broken = True
    lab.run(10)
    lab.boxes["n1"].drain_until_s = LONG_S
    lab.run(3)
    assert lab.boxes["n1"].engines == {}


def _table(one: Box) -> Route:
    assert one.shared is not None
    ready = any(a.stage is Stage.READY for a in one.shared.record.assignments)
    local = Route("a", ModelState.READY, (Target(one.id, "/a.sock", ready, 2),))
    table = RoutingTable(routes=(local,) if one.engines else ())
    (route,) = with_mesh(table, one.shared, Ways()).routes
    return route


def test_requests_go_elsewhere_from_both_gateways() -> None:
    lab = Lab(box("n1", "a"), box("n2", "a"))
    lab.run(10)
    first = _serving(lab)
    _busy(first, 1)
    first.drain_until_s = first.now_s + LONG_S
    lab.run(15)
    (second,) = (one for one in lab.boxes.values() if one is not first)
    for one in (first, second):
        assert [target.node for target in _table(one).targets] == [second.id]


def test_without_another_node_there_is_nothing_to_wait_for() -> None:
    lab = Lab(box("n1", "a"), box("n2"))
    lab.run(10)
    first = _serving(lab)
    assert first.id == "n1"
    first.drain_until_s = first.now_s + LONG_S
    lab.run(10)
    for one in lab.boxes.values():
        route = _table(one)
        assert route.state is ModelState.DRAINED
        assert "drained" in route.detail
        assert decode(encode(RoutingTable(routes=(route,)))).routes == (route,)


# -- a node that is alone -----------------------------------------------------------------------


def test_engines_stop_when_they_have_nothing_left_to_do() -> None:
    drain = Drain(100.0, 400.0)
    assert may_stop(None, ["a"], {}, 1e9) == frozenset()
    assert may_stop(drain, ["a", "b"], {}, 100.5) == frozenset(), "gateways have not heard of it"
    assert may_stop(drain, ["a", "b"], {"a": 2}, 102.0) == {"b"}
    assert may_stop(drain, ["a", "b"], {"a": 2}, 399.0) == {"b"}
    assert may_stop(drain, ["a", "b"], {"a": 2}, 400.0) == {"a", "b"}


def test_a_drain_is_remembered_until_it_is_undone(tmp_path: Path) -> None:
    file = tmp_path / "drain.json"
    now = [50.0]
    order = DrainOrder(file, lambda: now[0])
    assert order.now is None
    assert order.again_s() is None
    order.begin(300.0)
    now[0] = 60.0
    again = DrainOrder(file, lambda: now[0])
    assert again.now == Drain(50.0, 350.0)
    again.begin(10.0)
    assert again.now == Drain(50.0, 70.0), "a second one moves the deadline"
    assert again.again_s() == pytest.approx(2.0)
    again.end()
    again.end()
    assert DrainOrder(file, lambda: now[0]).now is None


def test_what_is_cut_is_counted_once(tmp_path: Path) -> None:
    now = [0.0]
    order = DrainOrder(None, lambda: now[0])
    order.begin(5.0)
    order.look({"a": 3})
    assert order.cut == 0
    now[0] = 5.0
    order.look({"a": 2, "b": 1})
    order.look({})
    assert order.cut == 3


@pytest.mark.parametrize("content", [b"", b"{}", b'{"since_s": "x", "until_s": 1}', b"\xff"])
def test_a_broken_file_is_no_drain(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "drain.json"
    file.write_bytes(content)
    assert DrainOrder(file).now is None


@pytest.mark.parametrize("deadline_s", [-1.0, 1e6, float("nan")])
def test_a_deadline_that_cannot_be_is_refused(deadline_s: float) -> None:
    with pytest.raises(UserError, match="deadline"):
        DrainOrder().begin(deadline_s)


@dataclass
class Counting(Alone):
    """Alone, with a gateway that says what runs."""

    running: dict[str, int] = field(default_factory=dict)

    def busy(self) -> Mapping[str, int]:
        return self.running


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, text=TWO)


async def test_a_lone_node_refuses_what_is_new_and_ends_what_runs(world: World) -> None:
    around = Counting({"a": 1})
    async with brain(world, around) as supervisor:
        world.done.clear()
        await supervisor.drain(300.0)
        assert {route.state for route in world.tables[-1].routes} == {ModelState.DRAINED}
        assert not any(route.targets for route in world.tables[-1].routes)
        assert "--undo" in world.tables[-1].routes[0].detail
        assert world.done == []
        status = supervisor.status()
        assert status.drain is not None
        assert not status.healthy
        assert "draining, 1 request runs" in status.sentence
        world.now_s += 2
        supervisor.wake()
        await until(lambda: world.done == [("stop", "mesh-llama@b.service")])
        around.running.clear()
        supervisor.wake()
        await until(lambda: len(world.done) == 2)
        await until(lambda: supervisor.status().sentence.startswith("drained"))
        drain = supervisor.status().drain
        assert drain is not None
        assert drain.done
        assert drain.cut == 0
        world.done.clear()
        await supervisor.undrain()
        assert {action for action, _ in world.done} == {"start"}
        assert supervisor.status().drain is None
        assert all(route.targets for route in world.tables[-1].routes)


async def test_at_its_deadline_a_lone_node_stops_what_still_runs(world: World) -> None:
    around = Counting({"a": 2})
    async with brain(world, around) as supervisor:
        world.done.clear()
        await supervisor.drain(60.0)
        world.now_s += 59
        supervisor.wake()
        await until(lambda: world.done == [("stop", "mesh-llama@b.service")])
        world.now_s += 1
        supervisor.wake()
        await until(lambda: len(world.done) == 2)
        # What became of it is told when the pass is over.
        await until(lambda: (drain := supervisor.status().drain) is not None and drain.cut == 2)


async def test_a_client_has_nothing_to_drain(world: World) -> None:
    world.text = "node: {role: client}\n"
    async with brain(world) as supervisor:
        with pytest.raises(UserError, match="client"):
            await supervisor.drain(60.0)


async def test_a_drained_node_saves_no_configuration_as_good(world: World) -> None:
    async with brain(world, Counting()) as supervisor:
        await supervisor.drain(60.0)
        world.now_s += 2
        world.text = TWO.replace("slots: 1", "slots: 3")
        await supervisor.reload()
        assert all("slots: 3" not in one.files[0].text for one in world.good)
