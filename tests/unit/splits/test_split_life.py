"""A split from its first plan to its recovery, over whole nodes under a virtual clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.config.settings import Config, NodeSettings, Reserve, Role, Split
from meshd.mesh.record import LeaseStage, Stage
from meshd.planner.plan import Code, Strategy
from meshd.planner.view import Candidate
from meshd.split_watch import PROBATION_S
from meshd.units.spec import EngineKind
from tests.unit.splits.split_lab import LOAD_S, Box, SplitLab, observation
from tests.unit.worlds import MIB, facts, hardware, wants

# 16 blocks of half a GiB: 8 GiB, more than any of the boxes has.
BIG = facts(layers=16, layer_bytes=512 * MIB)
RAM_GIB = 6.5


def box(
    lab: SplitLab,
    name: str,
    *,
    holds: bool = True,
    asks: bool = True,
    ram_gib: float = RAM_GIB,
) -> Box:
    settings = Config(
        node=NodeSettings(name=name, reserve=Reserve(512 * MIB, 512 * MIB)),
        models=(wants("big", context=2048, slots=1),) if asks else (),
    )
    candidates = (Candidate("big", BIG, "big:1", fingerprint="f" * 32),) if holds else ()
    return lab.add(name, settings, observation(hardware(ram_gib=ram_gib), name, *candidates))


@pytest.fixture
def lab() -> SplitLab:
    lab = SplitLab()
    for name in ("ada", "bob", "cleo"):
        box(lab, name)
    return lab


def host_of(lab: SplitLab) -> str:
    lab.until(lambda: lab.hosts("big"), 60)
    (host,) = lab.hosts("big")
    return host


def members(lab: SplitLab, host: str) -> tuple[str, ...]:
    return lab.boxes[host].running[0].decision.members


def term(lab: SplitLab, host: str) -> int:
    return lab.boxes[host].running[0].decision.term


def test_a_model_that_fits_nobody_is_served_by_two(lab: SplitLab) -> None:
    host = host_of(lab)
    decision = lab.boxes[host].running[0].decision
    assert decision.strategy is Strategy.PIPELINE
    assert sum(part.layers for part in decision.parts) == len(BIG.layers)
    (member,) = decision.members
    assert [one.spec.kind for one in lab.boxes[member].processes.values()] == [
        EngineKind.RPC,
        EngineKind.GUARD,
    ]
    assert lab.boxes[host].record.assignment("big").stage is Stage.READY  # type: ignore[union-attr]
    # And nobody else has anything to do with it.
    (third,) = lab.boxes.keys() - {host, member}
    assert lab.boxes[third].processes == {}


def test_its_engine_starts_only_when_every_member_was_reached(lab: SplitLab) -> None:
    for one in lab.boxes.values():
        one.unreached = set(lab.boxes)
    lab.run(9)
    assert any(one.process(EngineKind.GUARD, "big") for one in lab.boxes.values())
    assert not any(one.process(EngineKind.LLAMA, "big") for one in lab.boxes.values())
    for one in lab.boxes.values():
        one.unreached = set()
    lab.until(lambda: lab.hosts("big"), 30)


def test_it_runs_on_without_change(lab: SplitLab) -> None:
    host = host_of(lab)
    first = term(lab, host)
    before = {name: dict(one.processes) for name, one in lab.boxes.items()}
    lab.run(60)
    assert {name: one.processes for name, one in lab.boxes.items()} == before
    assert term(lab, host) == first


def test_a_silence_ends_the_term_and_both_ends_are_restarted(lab: SplitLab) -> None:
    host = host_of(lab)
    (member,) = members(lab, host)
    first = term(lab, host)
    old = {
        "engine": lab.boxes[host].process(EngineKind.LLAMA, "big"),
        "rpc": next(iter(lab.boxes[member].processes.values())),
    }
    lab.boxes[host].lose(member, "big")
    took_s = lab.until(lambda: term(lab, host) == first + 1 and lab.hosts("big"), 30)
    assert took_s <= LOAD_S + 5
    assert lab.boxes[host].process(EngineKind.LLAMA, "big") is not old["engine"]
    assert next(iter(lab.boxes[member].processes.values())) is not old["rpc"]


def test_who_fails_three_times_is_left_out_and_comes_back_after_its_probation(
    lab: SplitLab,
) -> None:
    host = host_of(lab)
    (member,) = members(lab, host)
    (third,) = lab.boxes.keys() - {host, member}
    for _ in range(3):
        lab.until(lambda: lab.hosts("big"), 60)
        lab.boxes[host].lose(member, "big")
        lab.run(1.5)
    assert host_of(lab) == host
    assert members(lab, host) == (third,)
    # What runs is left alone; but when the other goes, the first is asked again.
    lab.run(PROBATION_S)
    lab.die(third)
    lab.until(lambda: lab.hosts("big") and members(lab, host) == (member,), 60)


def test_a_configuration_that_forbids_splits_ends_one(lab: SplitLab) -> None:
    host = host_of(lab)
    for one in lab.boxes.values():
        whole = replace(one.config.models[0], split=Split.NEVER)
        one.config = replace(one.config, models=(whole,))
    lab.until(lambda: not any(one.processes for one in lab.boxes.values()), 10)
    last = lab.boxes[host].last
    assert last is not None
    assert last.share is not None
    (could,) = last.share.could
    assert [reason.code for reason in could.blockers][:1] == [Code.NEVER_SPLIT]
    (placed,) = last.share.plan.placements
    assert any("models[].split is never" in one.text for one in placed.excluded)


def test_a_member_that_dies_is_replaced(lab: SplitLab) -> None:
    host = host_of(lab)
    (member,) = members(lab, host)
    (third,) = lab.boxes.keys() - {host, member}
    lab.die(member)
    lab.until(lambda: lab.hosts("big") and members(lab, host) == (third,), 30)


def test_when_nobody_is_left_the_model_waits_and_says_why(lab: SplitLab) -> None:
    host = host_of(lab)
    others = lab.boxes.keys() - {host}
    lab.die(*others)
    lab.run(10)
    alone = lab.boxes[host]
    assert alone.processes == {}
    assert alone.record is not None
    offer = alone.record.offer("big")
    assert offer is not None
    assert offer.strategy == Strategy.WAIT
    assert offer.problem
    # And it is served again as soon as somebody comes back.
    lab.gone.clear()
    lab.until(lambda: lab.hosts("big"), 60)


def test_the_death_of_the_host_gives_the_split_to_another_that_holds_the_file(
    lab: SplitLab,
) -> None:
    host = host_of(lab)
    lab.die(host)
    lab.until(lambda: lab.hosts("big"), 60)
    new = host_of(lab)
    assert new != host
    # What was lent to the dead one is given back.
    held = {one.spec.name for box in lab.boxes.values() for one in box.processes.values()}
    assert f"big.{host[:8]}" not in held


def test_a_new_brain_at_either_end_touches_nothing(lab: SplitLab) -> None:
    host = host_of(lab)
    (member,) = members(lab, host)
    first = term(lab, host)
    before = {name: dict(one.processes) for name, one in lab.boxes.items()}
    lab.boxes[host].born_again()
    lab.run(10)
    lab.boxes[member].born_again()
    lab.run(10)
    assert {name: one.processes for name, one in lab.boxes.items()} == before
    assert lab.hosts("big") == [host]
    assert term(lab, host) == first


def test_a_new_brain_that_has_not_heard_of_a_member_yet_touches_nothing(lab: SplitLab) -> None:
    host = host_of(lab)
    (member,) = members(lab, host)
    before = {name: dict(one.processes) for name, one in lab.boxes.items()}
    lab.boxes[host].born_again()
    lab.gone.add(member)
    lab.step()
    lab.gone.discard(member)
    lab.run(20)
    assert {name: one.processes for name, one in lab.boxes.items()} == before


def test_a_member_that_is_not_reached_gives_way_to_one_that_is(lab: SplitLab) -> None:
    host = host_of(lab)
    (member,) = members(lab, host)
    lab.boxes[host].unreached.add(member)
    lab.boxes[host].lose(member, "big")
    took_s = lab.until(lambda: members(lab, host) != (member,) and lab.hosts("big"), 60)
    assert took_s < 30


def test_a_member_without_the_file_takes_part(lab: SplitLab) -> None:
    alone = SplitLab()
    box(alone, "ada")
    box(alone, "bob", holds=False, asks=False)
    assert host_of(alone) == "ada"
    assert members(alone, "ada") == ("bob",)


def test_another_build_is_refused_with_what_to_upgrade() -> None:
    lab = SplitLab()
    box(lab, "ada")
    other = box(lab, "bob", holds=False, asks=False)
    engine = other.observation.engine
    assert engine is not None
    other.observation = replace(
        other.observation, engine=replace(engine, build=11700, package="1:0.7.1-1", version="0.7.1")
    )
    lab.run(20)
    assert lab.hosts("big") == []
    offer = lab.boxes["ada"].record.offer("big")  # type: ignore[union-attr]
    assert offer is not None
    assert "other engine build" in offer.problem


def test_a_member_that_is_too_far_is_not_asked() -> None:
    lab = SplitLab(rtt_ms=120.0)
    box(lab, "ada")
    box(lab, "bob")
    lab.run(20)
    assert lab.hosts("big") == []


def test_a_refusal_is_taken_for_an_answer() -> None:
    """A node whose memory went to something else says so, and another is asked."""
    lab = SplitLab()
    box(lab, "ada")
    busy = box(lab, "bob", holds=False, asks=False)
    box(lab, "cleo", holds=False, asks=False, ram_gib=6.0)
    lab.step()
    # Its record still says that it has room.
    told = busy.record
    busy.config = replace(busy.config, node=replace(busy.config.node, role=Role.CLIENT))
    assert told is not None
    lab.until(lambda: lab.hosts("big"), 60)
    assert members(lab, "ada") == ("cleo",)


def test_a_lease_names_its_port_and_its_stage(lab: SplitLab) -> None:
    host = host_of(lab)
    (member,) = members(lab, host)
    record = lab.boxes[member].record
    assert record is not None
    (lease,) = record.leases
    assert (lease.host, lease.model, lease.term) == (host, "big", term(lab, host))
    assert lease.stage is LeaseStage.READY
    assert lease.port == 9340
