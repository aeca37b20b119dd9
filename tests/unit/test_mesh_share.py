"""One node's share of the plan, with the real planner and claims, and several nodes in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from meshd.config.settings import Config, NodeSettings, Replicas, Role
from meshd.deeds import Deeds, EngineNow
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target, decode, encode
from meshd.gateway.traffic import ModelTraffic, TrafficReport
from meshd.mesh.demand import DemandCounter
from meshd.mesh.record import NodeRecord, Stage
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.mesh_routes import Ways, with_former, with_mesh
from meshd.mesh_share import Around, Share, share, with_own
from meshd.mesh_status import elsewhere_status, member_lines
from meshd.own_record import Moving, Self
from meshd.planner.claims import Engine
from meshd.planner.view import NodeView
from tests.unit.test_supervisor import BUILD
from tests.unit.worlds import config, facts, gpu, node, wants

ENGINE_S = 3.0
EARLY_S = 1.0


@dataclass
class Box:
    """One node that runs the share again and again, with engines that take `ENGINE_S` to load."""

    id: str
    config: Config
    view: NodeView
    now_s: float = 0.0
    engines: dict[str, float] = field(default_factory=dict)
    shared: Share | None = None
    broken: bool = False
    drain_until_s: float | None = None

    def __post_init__(self) -> None:
        self.deeds = Deeds(lambda: self.now_s)

    def states(self) -> dict[str, EngineNow]:
        def state(since_s: float) -> EngineNow:
            if self.broken:
                return EngineNow(Engine.FAILED, "it fell")
            ready = self.now_s - since_s >= ENGINE_S
            return EngineNow(Engine.ANSWERS if ready else Engine.STARTING)

        return {model: state(since_s) for model, since_s in self.engines.items()}

    def step(self, view: MeshView, demand: Mapping[str, float]) -> NodeRecord:
        around = Around(
            self=Self(self.id, (f"{self.id}:9338",), "s"),
            view=view,
            demand=demand,
            calm_s=10.0,
            own=self.deeds.own(self.states()),
            terms=dict(self.deeds.terms),
            drained=self.deeds.drained(self.drain_until_s),
            moving=Moving(draining=self.drain_until_s is not None),
            cut=self.drain_until_s is not None and self.now_s >= self.drain_until_s,
            before=self.shared.record if self.shared else None,
            early=self.now_s < EARLY_S,
        )
        self.shared = share(self.config, self.view, BUILD, (), around)
        self.deeds.took(self.shared.record.assignments)
        wanted = {model.name for model in self.shared.config.models}
        self.engines = {model: self.engines.get(model, self.now_s) for model in wanted}
        return self.shared.record


class Lab:
    """Boxes that hear each other at once."""

    def __init__(self, *boxes: Box) -> None:
        self.boxes = {box.id: box for box in boxes}
        self.records: dict[str, NodeRecord] = {}
        self.status: dict[str, Status] = {}

    def view(self, me: str) -> MeshView:
        members = tuple(
            MemberView(name, 1, self.status.get(name, Status.ALIVE), record)
            for name, record in sorted(self.records.items())
        )
        return MeshView(me, members, hash(members))

    def run(self, time_s: float, demand: Mapping[str, float] | None = None) -> None:
        for _ in range(int(time_s / 0.5)):
            for box in self.boxes.values():
                box.now_s += 0.5
                self.records[box.id] = box.step(self.view(box.id), demand or {})

    def serving(self, model: str) -> list[str]:
        return [
            name
            for name, record in self.records.items()
            if (one := record.assignment(model)) is not None and one.stage is Stage.READY
        ]


def box(name: str, *models: str, has: tuple[str, ...] = (), role: Role = Role.AUTO) -> Box:
    """A node whose configuration names `models` and whose disk holds these and `has`."""
    on_disk = {name: facts(layers=8) for name in (*models, *has)}
    one = replace(node(gpu(), models=on_disk), name=name)
    candidates = tuple(replace(c, fingerprint=f"fp-{c.model}") for c in one.candidates)
    named = config(*map(wants, models), node=NodeSettings(role=role))
    return Box(name, named, replace(one, id=name, candidates=candidates))


def test_one_of_several_equal_nodes_runs_each_model() -> None:
    lab = Lab(*(box(name, "a", "b") for name in ("n1", "n2", "n3")))
    lab.run(10)
    assert len(lab.serving("a")) == 1
    assert len(lab.serving("b")) == 1
    assert lab.serving("a") != lab.serving("b"), "idle nodes share the work"


def test_a_model_is_served_by_whoever_has_its_file() -> None:
    lab = Lab(box("n1", "a", "b"), box("n2", has=("b",)))
    lab.boxes["n1"].view = replace(
        lab.boxes["n1"].view,
        candidates=tuple(c for c in lab.boxes["n1"].view.candidates if c.model == "a"),
    )
    lab.run(10)
    assert lab.serving("a") == ["n1"]
    assert lab.serving("b") == ["n2"]
    offers = {offer.model: offer for offer in lab.records["n1"].offers}
    assert offers["b"].strategy == "wait", "who names a model says why it cannot run it"


def test_a_standby_waits_until_it_is_needed() -> None:
    lab = Lab(box("n1", "a"), box("n2", has=("a",), role=Role.STANDBY))
    lab.run(10)
    assert lab.serving("a") == ["n1"]
    lab.boxes["n1"].broken = True
    lab.run(10)
    assert lab.serving("a") == ["n2"]
    assert not lab.boxes["n1"].engines, "what another serves is not tried here any more"


def test_two_replicas_are_on_two_nodes() -> None:
    lab = Lab(*(box(name, "a") for name in ("n1", "n2", "n3")))
    for one in lab.boxes.values():
        one.config = config(wants("a", replicas=Replicas(2, 2)))
    lab.run(10)
    assert len(lab.serving("a")) == 2


def test_demand_brings_a_model_and_its_end_takes_it_away() -> None:
    lab = Lab(box("n1", "a"), box("n2", "a"))
    for one in lab.boxes.values():
        one.config = config(wants("a", replicas=Replicas(0, 1)))
    lab.run(5)
    assert lab.serving("a") == []
    lab.run(10, {"a": 5.0})
    assert len(lab.serving("a")) == 1
    lab.run(400)
    assert lab.serving("a") == []
    assert not any(one.engines for one in lab.boxes.values())


def _on_demand(*names: str) -> Lab:
    lab = Lab(*(box(name, "a") for name in names))
    for one in lab.boxes.values():
        one.config = config(wants("a", replicas=Replicas(0, None)))
    lab.run(5)
    return lab


def _loads(lab: Lab) -> set[tuple[str, float]]:
    return {(name, began) for name, box in lab.boxes.items() for began in box.engines.values()}


def test_however_many_wait_for_a_model_it_is_loaded_once() -> None:
    lab = _on_demand("n1", "n2", "n3")
    seen: set[tuple[str, float]] = set()
    for _ in range(40):
        lab.run(0.5, {"a": 500.0})
        seen |= _loads(lab)
        if lab.serving("a"):
            break
    assert len(lab.serving("a")) == 1
    assert len(seen) == 1
    # That so many ask is a reason for more as soon as one serves.
    lab.run(10, {"a": 500.0})
    assert len(lab.serving("a")) > 1


def test_demand_that_comes_and_goes_loads_it_once_and_not_each_time() -> None:
    lab = _on_demand("n1", "n2")
    seen: set[tuple[str, float]] = set()
    for _ in range(7):
        # Less than `demand.dwell` altogether, and forgotten between.
        lab.run(10, {"a": 5.0})
        seen |= _loads(lab)
        lab.run(30, {"a": 0.0})
        seen |= _loads(lab)
    assert len(seen) == 1
    assert len(lab.serving("a")) == 1
    lab.run(400)
    assert lab.serving("a") == []


def test_a_suspect_node_is_not_replaced_but_comes_last() -> None:
    lab = Lab(box("n1", "a"), box("n2", "a"))
    lab.run(10)
    (server,) = lab.serving("a")
    (other,) = {"n1", "n2"} - {server}
    del lab.boxes[server]
    lab.status[server] = Status.SUSPECT
    lab.run(5)
    assert lab.serving("a") == [server]
    shared = lab.boxes[other].shared
    assert shared is not None
    table = with_mesh(RoutingTable(node=other), shared, Ways(mesh="m", tls="/tls"))
    (target,) = table.routes[0].targets
    assert (target.node, target.suspect, target.ready) == (server, True, True)
    assert [peer.node for peer in table.peers] == [other]


def test_routes_lead_to_engines_here_and_elsewhere() -> None:
    lab = Lab(box("n1", "a", "b"), box("n2", "a", "b"))
    lab.run(10)
    (here,) = lab.serving("a")
    shared = lab.boxes[here].shared
    assert shared is not None
    local = Target(here, "/run/a.sock", ready=True, slots=4)
    alone = RoutingTable(node=here, routes=(Route("a", ModelState.READY, (local,)),))
    ways = Ways(mesh="m", tls="/tls", rtt_ms={"n1": 0.5, "n2": 0.5}, revoked=("x",))
    table = with_mesh(alone, shared, ways)
    routes = {route.model: route for route in table.routes}
    assert routes["a"].targets == (replace(local, weights="fp-a"),)
    (far,) = routes["b"].targets
    assert far.address == f"{far.node}:9338"
    assert far.rtt_ms == 0.5
    assert far.weights == "fp-b"
    assert routes["b"].state is ModelState.READY
    assert routes["b"].capabilities == ("chat", "completion")
    assert table.revoked == ("x",)
    assert (table.mesh, table.tls) == ("m", "/tls")


def test_what_is_given_up_gets_nothing_new_and_ends_when_it_is_idle() -> None:
    lab = Lab(box("n1", "a"))
    one = lab.boxes["n1"]
    one.config = config(wants("a", replicas=Replicas(0, 1)))
    lab.run(10, {"a": 5.0})
    demand = DemandCounter()
    one.deeds.count(TrafficReport("g1", (ModelTraffic("a", requests=1, in_flight=1),)), demand)
    lab.run(300, {"a": 5.0})
    lab.run(5)
    assert one.deeds.drained() == frozenset()
    assert "a" in one.engines, "somebody still reads its answer"
    assert one.shared is not None
    route = Route("a", ModelState.READY, (Target("n1", "/run/a.sock", ready=True, slots=4),))
    table = with_mesh(RoutingTable(node="n1", routes=(route,)), one.shared, Ways())
    assert table.routes[0].targets == ()
    one.deeds.count(TrafficReport("g1", (ModelTraffic("a", requests=1),)), demand)
    lab.run(2)
    assert not one.engines


def test_engines_of_an_earlier_life_are_taken_up() -> None:
    lab = Lab(box("n1", "a"), box("n2", "a"))
    lab.boxes["n2"].engines = {"a": -100.0}
    lab.run(1)
    assert lab.serving("a") == ["n2"]
    lab.run(10)
    assert lab.serving("a") == ["n2"]


def test_memory_that_moves_a_little_is_no_news() -> None:
    one = box("n1", "a")
    lab = Lab(one)
    lab.run(400)
    before = lab.records["n1"]
    ram = one.view.hardware.ram
    moved = replace(ram, available_bytes=ram.available_bytes - 300 * 1024**2)
    one.view = replace(one.view, hardware=replace(one.view.hardware, ram=moved))
    lab.run(1)
    assert lab.records["n1"] == before
    moved = replace(ram, available_bytes=ram.available_bytes // 2)
    one.view = replace(one.view, hardware=replace(one.view.hardware, ram=moved))
    lab.run(1)
    assert lab.records["n1"].devices != before.devices


def test_status_tells_where_the_others_models_run() -> None:
    lab = Lab(box("n1", "a", "b"), box("n2", "a", "b"))
    lab.run(10)
    for one in lab.boxes.values():
        assert one.shared is not None
        (far,) = elsewhere_status(one.shared, set(one.engines))
        assert far.state is ModelState.READY
        assert one.id not in lab.serving(far.name)
        assert far.nodes == tuple(lab.serving(far.name))
        lines = member_lines(one.shared.view, {}, {"n2": 1.5})
        assert [line.me for line in lines] == [one.id == "n1", one.id == "n2"]
        assert lines[1].rtt_ms == 1.5


def test_who_says_nonsense_of_where_it_is_spoils_no_table() -> None:
    lab = Lab(box("n1", "a", "b"), box("n2", "a", "b"), box("n3"))
    lab.run(10)
    (here,) = lab.serving("a")
    (far,) = lab.serving("b")
    one = lab.boxes[here]
    for nonsense in ((), ("nowhere",), ("x/y:1", f"{far}:9338")):
        lab.records[far] = replace(lab.records[far], addresses=nonsense)
        one.step(lab.view(here), {})
        assert one.shared is not None
        table = decode(encode(with_mesh(RoutingTable(node=here), one.shared, Ways(mesh="m"))))
        targets = [t.address for r in table.routes for t in r.targets if t.node == far]
        assert targets == [address for address in nonsense if address == f"{far}:9338"]


def test_load_is_told_in_steps() -> None:
    lab = Lab(box("n1", "a"))
    lab.run(10)
    deeds, demand = lab.boxes["n1"].deeds, DemandCounter()

    def busy(count: int) -> int:
        seen = ModelTraffic("a", requests=count, in_flight=count)
        deeds.count(TrafficReport("g", (seen,)), demand)
        return deeds.load()[0].busy

    assert [busy(count) for count in (1, 2, 3, 4, 7, 8)] == [1, 2, 2, 4, 4, 8]
    assert deeds.count(TrafficReport("g", (ModelTraffic("z", requests=1, misses=1),)), demand)
    assert demand.counters(0.0)["z"].misses == 1


def test_an_old_gateway_does_not_tell_a_new_brain_of_days() -> None:
    deeds, demand = Deeds(lambda: 0.0), DemandCounter()
    deeds.count(TrafficReport("g", (ModelTraffic("a", requests=10_000),)), demand)
    assert demand.counters(0.0)["a"].slow <= 10
    deeds.count(TrafficReport("g", (ModelTraffic("a", requests=10_100),)), demand)
    assert demand.counters(0.0)["a"].slow >= 100


def test_moving_parts_are_in_the_record() -> None:
    one = box("n1", "a")
    around = Around(Self("n1"), MeshView("n1"), moving=Moving(core=True))
    shared = share(one.config, one.view, BUILD, (), around)
    assert shared.record.core
    assert shared.record.engine is not None
    assert with_own(shared.view, shared.record) is shared.view


def test_after_a_restart_others_serve_on_until_they_were_heard_or_not() -> None:
    far = Target("bbbb", "", True, 2, address="10.0.0.2:9338")
    gone = Target("cccc", "", True, 1, address="10.0.0.3:9338")
    before = RoutingTable(
        mesh="m",
        routes=(
            Route("tiny", ModelState.READY, (Target("aaaa", "/run/tiny.sock", True, 2), far)),
            Route("small", ModelState.READY, (far, gone)),
        ),
    )
    fresh = RoutingTable(mesh="m", routes=(Route("small", ModelState.WAITING, (), detail="x"),))
    nobody = with_former(fresh, before, frozenset({"aaaa"}))
    assert {route.model: (route.state, route.targets) for route in nobody.routes} == {
        "tiny": (ModelState.READY, (far,)),
        "small": (ModelState.READY, (far, gone)),
    }, "this node's own engines are for its own plan to say"
    heard = with_former(fresh, before, frozenset({"aaaa", "bbbb", "cccc"}))
    assert heard == fresh, "who was heard speaks for itself"
    assert with_former(replace(fresh, mesh="other"), before, frozenset()).routes == fresh.routes
