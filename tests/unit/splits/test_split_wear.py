"""What random lives of a mesh brought to light, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from meshd import pipeline
from meshd.config.settings import Limit
from meshd.config.split_ports import doors
from meshd.engine_specs import engine_specs
from meshd.mesh.record import Assignment, Intent, Lease, LeaseStage, Part, Stage
from meshd.mesh.view import Status
from meshd.paths import under
from meshd.planner.claims import Engine, Own
from meshd.planner.layout import RAM, Budgets
from meshd.planner.lending import lend
from meshd.planner.place import budgets_of, offer
from meshd.planner.plan import Code, Decision, Strategy
from meshd.revival import Revival
from meshd.split_share import (
    Splits,
    addresses_of,
    taken_up,
    terms_of,
    with_lent,
    with_pipelines,
)
from meshd.units.spec import EngineKind
from tests.unit.splits.split_lab import STEP_S, Box, SplitLab
from tests.unit.splits.test_lending import ME, PORT, intent, record, terms, view
from tests.unit.splits.test_split_life import box, host_of, members, term
from tests.unit.worlds import GIB, MIB


@pytest.fixture
def lab() -> SplitLab:
    lab = SplitLab()
    for name in ("ada", "bob", "cleo"):
        box(lab, name)
    return lab


def test_a_host_that_forgot_its_terms_goes_on_from_what_others_lend_it(lab: SplitLab) -> None:
    lease = Lease("big", ME, 7, LeaseStage.READY, 9340)
    others = view(replace(record("ada"), leases=(lease, replace(lease, host="cleo", term=9))))
    host = host_of(lab)
    assert lab.boxes[host].last is not None
    node = replace(lab.boxes[host].last.node, running=())  # type: ignore[union-attr]
    assert terms_of({}, node, others) == {"big": 7}
    assert terms_of({"big": 8, "small": 1}, node, others) == {"big": 8, "small": 1}


def test_what_a_new_brain_took_up_has_the_term_that_it_has(lab: SplitLab) -> None:
    host = lab.boxes[host_of(lab)]
    assert host.last is not None
    node = replace(host.last.node, running=host.running)
    found = Own(Assignment("big", "", Stage.LOADING, 0), 0.0)
    (own,) = taken_up((found,), node)
    assert own.assignment.term == host.running[0].decision.term > 0
    # Others, and what it lends itself, have to reckon with it at once.
    said = lab.view(host.id).member(host.id)
    assert said is not None
    assert own.assignment.memory == said.record.assignments[0].memory != ()
    later = replace(found, assignment=replace(own.assignment, term=50))
    assert taken_up((later,), node) == (later,)


def test_a_split_takes_nothing_that_other_models_of_its_host_hold(lab: SplitLab) -> None:
    host = lab.boxes[host_of(lab)]
    assert host.last is not None
    node = replace(host.last.node, running=())
    seen = lab.view(host.id)
    (settings,) = host.config.models
    alone = offer(node, host.config, settings)

    def split(rooms: dict[str, Budgets]) -> Decision:
        (found,) = with_pipelines(
            (alone,),
            node,
            host.config,
            {"big": settings},
            host.observation.engine,
            seen,
            Splits(addresses=addresses_of(seen, {})),
            {},
            rooms,
        )
        return found

    assert split({}).strategy is Strategy.PIPELINE
    waits = split({"big": Budgets({RAM: 128 * MIB})})
    assert (waits.strategy, waits.blockers[0].code) == (Strategy.WAIT, Code.NO_MEMORY)


def test_one_term_with_other_parts_is_another_arrangement() -> None:
    before = lend(view(record("ada", intent())), (), terms()).lent
    (after,) = lend(view(record("ada", intent(gib=3))), before, terms()).lent
    assert after.parts == (Part(ME, RAM, 4, 3 * GIB),)
    other = Intent("big", 1, "other content", intent().parts)
    (after,) = lend(view(record("ada", other)), before, terms()).lent
    assert after.fingerprint == "other content"


def test_a_limit_that_is_lowered_ends_what_is_beyond_it() -> None:
    asks = view(record("ada", intent("small"), intent("big")))
    before = lend(asks, (), terms(8)).lent
    assert len(before) == 2
    assert lend(asks, before, terms(4, limit=Limit(ram_bytes=4 * GIB))).lent == before
    # What is free moves; what was lent stays.
    assert lend(asks, before, terms(1)).lent == before
    after = lend(asks, before, terms(3, limit=Limit(ram_bytes=3 * GIB)))
    assert [one.model for one in after.lent] == ["big"]
    (lease,) = after.refused
    assert (lease.model, lease.stage) == ("small", LeaseStage.REFUSED)


def test_other_ports_are_taken_when_the_configuration_moves_them() -> None:
    asks = view(record("ada", intent()))
    before = lend(asks, (), terms()).lent
    (after,) = lend(asks, before, terms(first_port=PORT + 1000)).lent
    assert after.door_port in doors(PORT + 1000)


def test_the_hosts_own_ends_move_with_the_configuration(lab: SplitLab) -> None:
    host = host_of(lab)
    first = term(lab, host)
    one = lab.boxes[host]
    one.config = replace(one.config, mesh=replace(one.config.mesh, split_ports=20000))
    lab.until(lambda: term(lab, host) > first and lab.hosts("big"), 30)
    assert all(port >= 20000 for port in one.running[0].decision.local_ports)


def test_memory_is_taken_only_by_the_term_that_answers(lab: SplitLab) -> None:
    host = host_of(lab)
    (member,) = members(lab, host)
    lab.step()
    one = lab.boxes[member]
    assert one.last is not None
    now = lab.view(member)
    assert with_lent(one.last.node, one.lent, now).lent_resident
    silent = tuple(
        replace(each, status=Status.SUSPECT) if each.id == host else each for each in now.members
    )
    assert not with_lent(one.last.node, one.lent, replace(now, members=silent)).lent_resident
    next_term = tuple(replace(lent, term=lent.term + 1) for lent in one.lent)
    assert not with_lent(one.last.node, next_term, now).lent_resident


def starting(one: Box) -> bool:
    return bool(one.running) and one.process(EngineKind.GUARD, "big") is not None


def test_memory_is_not_counted_twice_when_who_filled_it_is_gone(lab: SplitLab) -> None:
    host = lab.boxes[host_of(lab)]
    (member,) = members(lab, host.id)
    one = lab.boxes[member]
    lab.step()
    assert one.last is not None
    node = with_lent(one.last.node, one.lent, lab.view(member))
    assert node.lent_resident
    ram = node.hardware.ram
    assert ram.available_bytes == ram.total_bytes
    reserve = one.config.node.reserve.ram_bytes
    assert budgets_of(node, one.config).free(RAM) == ram.total_bytes - reserve


def test_a_new_brain_goes_on_with_a_split_whose_engine_has_not_started(lab: SplitLab) -> None:
    for one in lab.boxes.values():
        one.unreached = set(lab.boxes)
    lab.until(lambda: any(starting(one) for one in lab.boxes.values()), 20)
    host = next(one for one in lab.boxes.values() if starting(one))
    first, guard = host.running[0].decision.term, host.process(EngineKind.GUARD, "big")
    host.born_again()
    lab.step()
    assert pipeline.engines_now(host.running, host.engines(), None)["big"].engine is Engine.STARTING
    for one in lab.boxes.values():
        one.unreached = set()
    lab.until(lambda: lab.hosts("big"), 20)
    assert host.running[0].decision.term == first
    assert host.process(EngineKind.GUARD, "big") is guard


def test_what_is_arranged_anew_is_not_said_to_answer(lab: SplitLab) -> None:
    host = host_of(lab)
    (member,) = members(lab, host)
    first = term(lab, host)
    lab.boxes[host].lose(member, "big")
    lab.step()
    assert term(lab, host) == first + 1
    said = lab.boxes[host].record
    assert said is not None
    assignment = said.assignment("big")
    assert assignment is not None
    assert (assignment.stage, assignment.term) == (Stage.LOADING, first + 1)


def test_an_engine_is_not_started_on_memory_that_went_meanwhile(lab: SplitLab) -> None:
    for one in lab.boxes.values():
        one.unreached = set(lab.boxes)
    lab.until(lambda: any(one.running for one in lab.boxes.values()), 20)
    host = next(one for one in lab.boxes.values() if one.running)
    lab.run(STEP_S)
    seen = host.observation.hardware
    less = replace(seen, ram=replace(seen.ram, available_bytes=1024 * MIB))
    host.observation = replace(host.observation, hardware=less)
    for one in lab.boxes.values():
        one.unreached = set()
    lab.run(10)
    for process in host.processes.values():
        assert process.spec.kind is not EngineKind.LLAMA or (
            host.running[0].decision.memory_bytes < 1024 * MIB
        )


def test_two_units_of_one_name_end_no_pass(lab: SplitLab) -> None:
    """A model on the member may by chance be called what is lent there."""
    host = host_of(lab)
    (member,) = members(lab, host)
    one = lab.boxes[member]
    assert one.last is not None
    lent = one.last.lent
    twice = (*lent, replace(lent[0], rpc_port=lent[0].rpc_port + 1))
    share = one.last.share
    assert share is not None
    found = engine_specs(
        one.last.plan,
        one.last.node,
        one.config,
        one.observation.engine,
        one.observation.hardware,
        one.engines(),
        under(Path("/lab")),
        replace(share, lent=twice),
        frozenset(),
        Revival(),
    )
    assert len({spec.unit for spec in found.specs}) == len(found.specs)
    assert found.refused
