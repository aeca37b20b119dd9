"""What a node answers to intents, case by case."""

from __future__ import annotations

from dataclasses import replace

from meshd.config.split_ports import doors, servers
from meshd.guard.status import End, GuardStatus, PeerStatus
from meshd.mesh.record import EngineRecord, Intent, LeaseStage, NodeRecord, Part
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.layout import RAM, Budgets
from meshd.planner.lending import Lending, Terms, leases, lend
from meshd.planner.lent import Lent
from meshd.seeding.wish import SeedStage, SeedState
from tests.unit.splits.split_lab import RPC_BUILD
from tests.unit.worlds import GIB

ENGINE = EngineRecord("0.7.0", "1:0.7.0+dfsg-2", "0.27.0", 11669, (8, 0, 0), ("CPU", "RPC"))
ME = "bob"
PORT = 9340


def record(name: str, *intents: Intent, engine: EngineRecord | None = ENGINE) -> NodeRecord:
    return NodeRecord(name, name, engine=engine, intents=intents)


def view(*records: NodeRecord) -> MeshView:
    members = tuple(
        MemberView(one.id, 1, Status.ALIVE, one)
        for one in sorted((record(ME), *records), key=lambda one: one.id)
    )
    return MeshView(ME, members, hash(members))


def intent(model: str = "big", term: int = 1, gib: int = 2, host: str = "ada") -> Intent:
    parts = (Part(host, RAM, 8, GIB), Part("cleo", RAM, 4, GIB), Part(ME, RAM, 4, gib * GIB))
    return Intent(model, term, "f", parts)


def terms(gib: int = 4, **changes: object) -> Terms:
    base = Terms(RPC_BUILD, Budgets({RAM: gib * GIB}), PORT)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_it_lends_its_own_part_from_the_right_layer_on() -> None:
    (lent,) = lend(view(record("ada", intent())), (), terms()).lent
    assert (lent.first_layer, lent.layers) == (12, 4)
    assert lent.parts == (Part(ME, RAM, 4, 2 * GIB),)
    assert (lent.door_port, lent.rpc_port) == (doors(PORT)[0], servers(PORT)[0])


def test_it_says_by_how_much_it_lacks_memory() -> None:
    answer = lend(view(record("ada", intent(gib=5))), (), terms())
    assert answer.lent == ()
    (lease,) = answer.refused
    assert lease.stage is LeaseStage.REFUSED
    assert lease.detail == "5120 MiB wanted of ram, 4096 MiB are free"


def test_of_two_that_ask_for_the_same_memory_one_gets_it() -> None:
    asks = view(record("ada", intent(gib=3)), record("dora", intent(gib=3, host="dora")))
    answer = lend(asks, (), terms())
    assert [one.host for one in answer.lent] == ["ada"]
    assert [one.host for one in answer.refused] == ["dora"]


def test_who_has_it_keeps_it_against_whoever_comes_first_by_name() -> None:
    before = lend(view(record("dora", intent(gib=3, host="dora"))), (), terms()).lent
    asks = view(record("ada", intent(gib=3)), record("dora", intent(gib=3, host="dora")))
    answer = lend(asks, before, terms())
    assert answer.lent == before
    assert [one.host for one in answer.refused] == ["ada"]


def test_a_new_term_gets_the_same_ports_and_a_new_part() -> None:
    other = lend(view(record("ada", intent("small"))), (), terms()).lent
    both = view(record("ada", intent("small"), intent("big")))
    before = lend(both, other, terms(8)).lent
    assert {one.model: one.door_port for one in before} == {"small": PORT, "big": PORT + 1}
    after = lend(
        view(record("ada", intent("small"), intent("big", term=2, gib=3))), before, terms(8)
    )
    assert {one.model: (one.term, one.door_port) for one in after.lent} == {
        "small": (1, PORT),
        "big": (2, PORT + 1),
    }


def test_an_intent_that_ends_ends_the_lease() -> None:
    before = lend(view(record("ada", intent())), (), terms()).lent
    assert lend(view(record("ada")), before, terms()) == Lending()
    assert lend(view(), before, terms()) == Lending()


def test_a_host_that_was_not_heard_of_yet_keeps_what_it_has() -> None:
    before = lend(view(record("ada", intent())), (), terms()).lent
    assert lend(view(), before, terms(early=True)).lent == before
    # One that was heard and wants nothing does not.
    assert lend(view(record("ada")), before, terms(early=True)).lent == ()


def test_another_engine_is_refused_with_what_to_upgrade() -> None:
    newer = replace(ENGINE, version="0.7.1", package="1:0.7.1-1", build=11700)
    (lease,) = lend(view(record("ada", intent(), engine=newer)), (), terms()).refused
    assert "upgrade the engine on bob" in lease.detail
    patch = replace(ENGINE, rpc_protocol=(8, 0, 1))
    (lease,) = lend(view(record("ada", intent(), engine=patch)), (), terms()).refused
    assert "RPC 8.0.1" in lease.detail


def test_who_lends_nothing_says_why() -> None:
    asks = view(record("ada", intent()))
    (lease,) = lend(asks, (), terms(unwilling="it is being drained")).refused
    assert lease.detail == "it is being drained"
    without = replace(RPC_BUILD, binaries=RPC_BUILD.binaries[:1])
    (lease,) = lend(asks, (), terms(build=without)).refused
    assert "no rpc-server" in lease.detail


def test_there_are_only_so_many_doors() -> None:
    models = [intent(f"m{number:02}", gib=0) for number in range(33)]
    answer = lend(view(record("ada", *models)), (), terms())
    assert len({one.door_port for one in answer.lent}) == 32
    assert [one.model for one in answer.refused] == ["m32"]


# -- what its record says ---------------------------------------------------------------------


def given() -> Lending:
    return lend(view(record("ada", intent())), (), terms())


def one_guard(lent: Lent, *, reached: bool, term: int = 1, problem: str = "") -> GuardStatus:
    peer = PeerStatus("ada", "127.0.0.1:1", reached=reached, problem=problem)
    return GuardStatus(lent.name, End.MEMBER, 0.0, term, (peer,))


def test_a_lease_goes_from_seeding_to_starting_to_ready() -> None:
    lending = given()
    (lent,) = lending.lent
    (lease,) = leases(lending, {}, {})
    assert (lease.stage, lease.progress) == (LeaseStage.SEEDING, 0.0)
    seeding = {lent.name: SeedState(SeedStage.SEEDING, 57, 100)}
    (lease,) = leases(lending, seeding, {lent.name: one_guard(lent, reached=True)})
    assert (lease.stage, lease.progress) == (LeaseStage.SEEDING, 0.5)
    ready = {lent.name: SeedState(SeedStage.READY)}
    (lease,) = leases(
        lending, ready, {lent.name: one_guard(lent, reached=False, problem="it loads")}
    )
    assert (lease.stage, lease.detail) == (LeaseStage.STARTING, "it loads")
    (lease,) = leases(lending, ready, {lent.name: one_guard(lent, reached=True)})
    assert lease.stage is LeaseStage.READY


def test_the_guard_of_an_earlier_term_makes_nothing_ready() -> None:
    lending = given()
    (lent,) = lending.lent
    ready = {lent.name: SeedState(SeedStage.READY)}
    (lease,) = leases(lending, ready, {lent.name: one_guard(lent, reached=True, term=7)})
    assert lease.stage is LeaseStage.STARTING


def test_without_a_seed_it_lends_all_the_same() -> None:
    lending = given()
    (lent,) = lending.lent
    unseeded = {lent.name: SeedState(SeedStage.UNSEEDED, detail="the disk is full")}
    (lease,) = leases(lending, unseeded, {lent.name: one_guard(lent, reached=True)})
    assert (lease.stage, lease.detail) == (LeaseStage.READY, "the disk is full")
