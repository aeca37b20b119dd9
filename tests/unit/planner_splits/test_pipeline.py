"""Who takes part in a split, who does not, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.config.settings import ModelSettings, Split
from meshd.mesh.record import Assignment, MemoryUse, NodeRecord, Offer, Stage, Wish
from meshd.mesh.view import MeshView
from meshd.planner.burdens import ONLY_HOME
from meshd.planner.near import ENTER_MS, STAY_MS
from meshd.planner.plan import Code, Considered, Decision, Strategy
from tests.unit.planner_splits.boxes import (
    ENGINE,
    GIB,
    MIB,
    Box,
    Card,
    as_offer,
    mesh_of,
    offered,
)
from tests.unit.worlds import facts

BIG = facts(layers=40, layer_bytes=800 * MIB)
ASKED = ModelSettings("m", "m.gguf", context=8192, slots=1)
CARD = Card(23, 800)
HOST = Box("a", 6, 30, (CARD,))
PEER = Box("b", 6, 30, (CARD,))


def split(*boxes: Box, **more: object) -> Decision:
    return offered(boxes[0], mesh_of(*boxes), BIG, ASKED, **more)


def about(decision: Decision, node: str) -> Considered:
    return next(one for one in decision.considered if one.nodes == (f"id-{node}",))


def changed(view: MeshView, node: str, **fields: object) -> MeshView:
    members = tuple(
        replace(member, record=replace(member.record, **fields))
        if member.id == f"id-{node}"
        else member
        for member in view.members
    )
    return replace(view, members=members)


def test_two_cards_take_what_neither_holds() -> None:
    decision = split(HOST, PEER)
    assert decision.strategy is Strategy.PIPELINE
    assert decision.members == ("id-b",)
    assert [part.device for part in decision.parts] == ["GPU-1", "GPU-1"]
    assert abs(decision.parts[0].layers - decision.parts[1].layers) <= 1
    assert 0.8 * 800e9 / BIG.file_bytes < decision.tokens_s < 800e9 / BIG.file_bytes


@pytest.mark.parametrize(
    ("peer", "code", "words"),
    [
        (replace(PEER, role="client"), Code.ROLE, "client"),
        (replace(PEER, draining=True), Code.DRAINED_NODE, "drained"),
        (replace(PEER, rtt_ms={}), Code.RTT_UNKNOWN, "not measured"),
        (replace(PEER, rtt_ms=ENTER_MS + 1), Code.FAR, "81 ms away"),
        (replace(PEER, engine=None), Code.OTHER_BUILD, "engine install"),
        (
            replace(PEER, engine=replace(ENGINE, build=11000, version="0.6.0")),
            Code.OTHER_BUILD,
            "upgrade the engine on b",
        ),
        (
            replace(PEER, engine=replace(ENGINE, rpc_protocol=(8, 0, 1))),
            Code.OTHER_BUILD,
            "upgrade the engine on a",
        ),
    ],
)
def test_who_may_not_take_part_is_named_with_the_reason(peer: Box, code: Code, words: str) -> None:
    host = replace(HOST, rtt_ms=peer.rtt_ms)
    decision = split(host, peer)
    assert decision.strategy is Strategy.WAIT
    assert about(decision, "b").reason.code is code
    assert words in about(decision, "b").reason.text
    assert decision.blockers[0].code is Code.NO_PEER


def test_a_round_trip_that_only_the_other_one_measured_counts() -> None:
    assert split(replace(HOST, rtt_ms={}), PEER).strategy is Strategy.PIPELINE


def test_a_member_that_failed_is_left_out_and_said() -> None:
    decision = split(HOST, PEER, excluded={"id-b": "failed three times, again in 9 min"})
    assert decision.strategy is Strategy.WAIT
    assert about(decision, "b").reason.code is Code.FAILED_AS_MEMBER
    assert about(decision, "b").reason.text == "failed three times, again in 9 min"


def test_a_model_that_is_not_to_be_split_waits() -> None:
    whole = replace(ASKED, split=Split.NEVER)
    decision = offered(HOST, mesh_of(HOST, PEER), BIG, whole)
    assert decision.strategy is Strategy.WAIT
    assert not decision.considered


def test_without_an_engine_or_company_there_is_no_split() -> None:
    assert split(HOST, PEER, build=None).strategy is Strategy.WAIT
    assert split(HOST).strategy is Strategy.WAIT


def test_nodes_beside_those_that_the_configuration_names_hold_no_part() -> None:
    view = changed(mesh_of(HOST, PEER), "a", wishes=(Wish("m", "m.gguf", nodes=("a",)),))
    decision = offered(HOST, view, BIG, ASKED)
    assert about(decision, "b").reason.code is Code.NOT_PINNED
    view = changed(view, "a", wishes=(Wish("m", "m.gguf", nodes=("a", "b")),))
    assert offered(HOST, view, BIG, ASKED).strategy is Strategy.PIPELINE


def test_a_split_that_is_no_faster_than_one_node_is_refused() -> None:
    near = Box("a", 64, 60, (Card(6, 800),))
    slow = Box("b", 64, 8, rtt_ms=40.0)
    decision = split(near, slow)
    assert decision.strategy is Strategy.SOLO_OFFLOAD
    assert decision.tokens_s > 0
    refused = decision.considered[0]
    assert refused.reason.code is Code.SOLO_FASTER
    assert refused.nodes == ("id-a", "id-b")
    assert 0 < refused.tokens_s <= decision.tokens_s


def test_a_split_says_that_another_node_is_faster_alone() -> None:
    better = Box("c", 64, 60, (Card(40, 900),), role="client")
    alone = Offer("m", "content-m", Strategy.SOLO_CPU, 8192, 1, (MemoryUse("ram", GIB),), 500.0)
    view = mesh_of(HOST, PEER, better, offers={"c": (alone,)})
    decision = offered(HOST, view, BIG, ASKED)
    assert decision.strategy is Strategy.PIPELINE
    assert Code.SOLO_FASTER in {reason.code for reason in decision.reasons}
    assert as_offer(HOST, decision).code == Code.SOLO_FASTER
    other_content = replace(alone, fingerprint="else")
    view = mesh_of(HOST, PEER, better, offers={"c": (other_content,)})
    assert as_offer(HOST, offered(HOST, view, BIG, ASKED)).code == ""


def test_speeds_that_nobody_measured_are_guessed_and_said() -> None:
    decision = split(HOST, replace(PEER, cards=(Card(23),)))
    found = [reason for reason in decision.reasons if reason.code is Code.UNMEASURED]
    assert [reason.text for reason in found] == [
        "speed not measured yet on b: a cautious guess is used"
    ]
    assert decision.tokens_s < split(HOST, PEER).tokens_s


def test_a_box_that_alone_can_serve_another_model_is_left_to_it_while_it_costs_little() -> None:
    third = replace(PEER, name="c")
    other = Offer(
        "n", "content-n", Strategy.SOLO_GPU, 8192, 1, (MemoryUse("GPU-1", 9 * GIB),), 50.0
    )
    view = mesh_of(HOST, PEER, third, offers={"b": (other,)})
    assert offered(HOST, view, BIG, ASKED).members == ("id-c",)
    view = mesh_of(HOST, PEER, third, offers={"c": (other,)})
    assert offered(HOST, view, BIG, ASKED).members == ("id-b",)
    # Of what is much faster, the penalty keeps nobody away, only the memory.
    small = replace(other, memory=(MemoryUse("GPU-1", MIB),))
    slow = replace(third, cards=(Card(23, 800 * (1 - 6 * ONLY_HOME)),))
    view = mesh_of(HOST, PEER, slow, offers={"b": (small,)})
    assert offered(HOST, view, BIG, ASKED).members == ("id-b",)


def test_memory_that_other_models_hold_is_taken_last() -> None:
    held = Assignment("n", "x", Stage.READY, 1, 8192, 1, (MemoryUse("GPU-1", 20 * GIB),))
    third = replace(PEER, name="c", rtt_ms=2.0)
    view = changed(mesh_of(HOST, PEER, third), "b", assignments=(held,))
    assert offered(HOST, view, BIG, ASKED).members == ("id-c",)
    alone = changed(mesh_of(HOST, PEER), "b", assignments=(held,))
    assert offered(HOST, alone, BIG, ASKED).members == ("id-b",)


def running(view: MeshView, decision: Decision, stage: Stage = Stage.READY) -> MeshView:
    one = Assignment(
        "m", "content-m", stage, 3, decision.context, decision.slots, parts=decision.parts
    )
    return changed(view, "a", assignments=(one,))


def test_what_is_split_already_stays_so_while_all_may_stay() -> None:
    decision = split(HOST, PEER)
    faster = Box("c", 16, 30, (Card(40, 2000),))
    view = running(mesh_of(HOST, PEER, faster), decision)
    assert offered(HOST, view, BIG, ASKED).parts == decision.parts
    assert Code.KEPT in {reason.code for reason in offered(HOST, view, BIG, ASKED).reasons}
    failed = running(view, decision, Stage.FAILED)
    assert offered(HOST, failed, BIG, ASKED).members == ("id-c",)
    excluded = offered(HOST, view, BIG, ASKED, excluded={"id-b": "failed"})
    assert excluded.members == ("id-c",)


@pytest.mark.parametrize(("ms", "stays"), [(STAY_MS - 1, True), (STAY_MS + 1, False)])
def test_a_member_leaves_later_than_it_would_enter(ms: float, stays: bool) -> None:
    decision = split(HOST, PEER)
    far_host, far = replace(HOST, rtt_ms={"b": ms, "c": 0.3}), replace(PEER, rtt_ms={"a": ms})
    third = replace(PEER, name="c")
    view = running(mesh_of(far_host, far, third), decision)
    found = offered(far_host, view, BIG, ASKED)
    assert found.members == (("id-b",) if stays else ("id-c",))


def test_of_a_thousand_nodes_the_near_and_fast_ones_take_part() -> None:
    crowd = [
        Box(f"n{number:04}", 16, 30, (Card(23, 300 if number % 50 else 800),), rtt_ms=2.0)
        for number in range(1000)
    ]
    decision = offered(HOST, mesh_of(HOST, *crowd), BIG, ASKED)
    assert decision.strategy is Strategy.PIPELINE
    assert all(int(node.removeprefix("id-n")) % 50 == 0 for node in decision.members)
    assert len(decision.considered) <= 40


def test_the_reason_for_waiting_tells_what_is_missing() -> None:
    tiny = Box("b", 2, 30)
    decision = split(replace(HOST, cards=()), tiny)
    assert decision.strategy is Strategy.WAIT
    (reason, *_) = decision.blockers
    assert reason.code is Code.NO_MEMORY
    assert "8.0 GiB together" in reason.text
    assert decision.next_step


def test_a_record_of_ours_is_not_needed() -> None:
    view = mesh_of(HOST, PEER)
    others = replace(view, members=tuple(m for m in view.members if m.id != HOST.id))
    more = replace(others.members[0], record=NodeRecord("id-z", name="z"), id="id-z")
    others = replace(others, members=(*others.members, more))
    assert offered(HOST, others, BIG, ASKED).strategy is Strategy.PIPELINE
