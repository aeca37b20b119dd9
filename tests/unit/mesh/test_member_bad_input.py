"""From a member that is broken, and from strangers: nothing crashes, grows, or is believed."""

from __future__ import annotations

import tracemalloc
from random import Random

import msgspec
import pytest

from meshd.mesh import messages
from meshd.mesh.bus import MESSAGE_MAX_BYTES
from meshd.mesh.envelope import seal_burial, seal_entry
from meshd.mesh.intake import FLOOD_BURST
from meshd.mesh.lattice import OWNERS_MAX
from meshd.mesh.member import Member
from meshd.mesh.messages import Compare, Entry, Give, Item, Ping, Summary, Sync, encode
from meshd.mesh.record import Assignment, NodeRecord, Stage
from meshd.mesh.record_codec import encode_record
from tests.unit.mesh.mesh_world import (
    ADMITTED,
    MESH,
    CheapSigner,
    CheapVerifier,
    World,
    id_of,
    key_of,
    mesh_of,
)

BROKEN = CheapSigner("n3")
FRAMES = 10_000


def mutant(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        how = rng.randrange(6)
        place = rng.randrange(len(changed)) if changed else 0
        if how == 0:
            changed[place : place + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            del changed[place : place + rng.randint(1, 40)]
        elif how == 2:
            changed[place:place] = rng.randbytes(rng.randint(1, 40))
        elif how == 3:
            changed[place:place] = changed[rng.randrange(len(changed) + 1) :][:200]
        elif how == 4:
            changed[place : place + 9] = b"\xcf" + b"\xff" * 8
        else:
            changed[place : place + 9] = b"\xcb\x7f\xf8\0\0\0\0\0\0"
    return bytes(changed)


def questions(world: World) -> list[bytes]:
    lattice = world.nodes["n0"]._intake.lattice
    summaries = [lattice.summary(owner) for owner in lattice.owners]
    item = Item(1.0, world.nodes["n1"]._own.standing)
    return [
        encode(question)
        for question in (
            Compare(lattice.root, [BROKEN.node_id]),
            Sync(list(range(64)), summaries),
            Give([item]),
            Ping(world.nodes["n0"].id, seal_burial(BROKEN, "other", world.nodes["n0"].id, 1)),
        )
    ]


def test_mutated_records_of_a_member_that_signs_them() -> None:
    """Signed by a real member, so that all that guards is the reading of the record."""
    world = mesh_of(5)
    rng = Random(1)
    member = world.nodes["n1"]
    before = {m.id: m for m in member.view().members if m.id != BROKEN.node_id}
    good = encode_record(
        NodeRecord(
            id=BROKEN.node_id,
            name="n3",
            assignments=(Assignment("m", "f", Stage.READY, progress=1.0),),
        )
    )
    shown = 0
    tracemalloc.start()
    for version in range(FRAMES):
        world.now_s += 0.1
        payload = mutant(good, rng)
        member.heard(seal_entry(BROKEN, MESH, "rec", 1, 100 + version, payload))
        found = member.view().member(BROKEN.node_id)
        if found is not None:
            shown += 1
            assert found.record.id == BROKEN.node_id
            assert all(0 <= one.progress <= 1 for one in found.record.assignments)
        if version == 1000:
            settled = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[0] - settled
    tracemalloc.stop()
    assert 0 < shown < FRAMES
    assert grown < 200_000
    assert {m.id: m for m in member.view().members if m.id != BROKEN.node_id} == before


def test_mutated_frames_of_every_kind() -> None:
    world = mesh_of(5)
    rng = Random(2)
    member = world.nodes["n0"]
    puts = [
        world.nodes["n1"]._own.standing,
        seal_burial(BROKEN, MESH, world.nodes["n2"].id, 1),
        seal_entry(BROKEN, MESH, "dem", 1, 2, b"x" * 100),
    ]
    asks = questions(world)
    incarnations = {name: m.incarnation for name, m in world.nodes.items()}
    root = member._intake.lattice.root
    tracemalloc.start()
    for number in range(FRAMES):
        frame = mutant(rng.choice(puts), rng)
        if frame in puts:
            continue
        member.heard(frame)
        reply = member.asked(mutant(rng.choice(asks), rng))
        assert reply is None or len(reply) <= MESSAGE_MAX_BYTES
        for effect in member.drain():
            member.answered(getattr(effect, "number", -1), frame)
        if number == 1000:
            settled = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[0] - settled
    tracemalloc.stop()
    assert grown < 200_000
    assert member._intake.lattice.root == root
    assert {m.id for m in member.view().members} == {m.id for m in world.nodes.values()}
    assert {name: m.incarnation for name, m in world.nodes.items()} == incarnations


def test_answers_of_a_broken_core_end_the_comparison_and_no_more() -> None:
    world = mesh_of(5)
    rng = Random(3)
    lattice = world.nodes["n0"]._intake.lattice
    item = Item(0.0, world.nodes["n1"]._own.standing)
    wants = [messages.Want(owner, "rec") for owner in lattice.owners]
    replies = [
        messages.Same(["nobody"]),
        messages.Differ([rng.getrandbits(64) for _ in range(64)], []),
        messages.Batch([item], wants, more=True),
        messages.Taken(2**53),
        messages.Pong("n1", b""),
    ]
    member = world.nodes["n4"]
    asked = 0
    for _ in range(2000):
        world.now_s += 1.0
        member.tick()
        for effect in member.drain():
            asked += 1
            reply = encode(rng.choice(replies))
            member.answered(getattr(effect, "number", -1), rng.choice([reply, mutant(reply, rng)]))
    # An endless "more" is cut: a round is some questions, not a loop.
    assert asked < 2000 * 4
    assert member._outbox.open_count < 20
    assert len(member.view().members) == 5


def test_an_endless_more_that_brings_nothing_new_is_not_followed() -> None:
    world = mesh_of(3)
    member = world.nodes["n2"]
    world.now_s += 30
    member.tick()
    asked = 0
    while effects := member.drain():
        for effect in effects:
            asked += 1
            reply: object = messages.Differ(list(range(64)), [])
            if asked % 2 == 0:
                reply = messages.Batch([], [], more=True)
            member.answered(getattr(effect, "number", -1), encode(reply))
    assert asked < 5


def test_garbage_from_strangers_costs_little_and_changes_nothing() -> None:
    world = mesh_of(3)
    rng = Random(4)
    member = world.nodes["n0"]
    root = member._intake.lattice.root
    checks = member._intake.gate._verifier.checks  # type: ignore[attr-defined]
    for _ in range(FRAMES):
        member.heard(rng.randbytes(rng.randint(0, 300)))
        assert member.asked(rng.randbytes(rng.randint(0, 300))) is None
        member.answered(rng.randrange(100), rng.randbytes(50))
        member.token(rng.randbytes(5).decode("latin-1"), up=False)
    assert member._intake.lattice.root == root
    assert member._intake.gate._verifier.checks == checks  # type: ignore[attr-defined]


WRONG = {
    "another mesh's signature": seal_entry(BROKEN, "other", "rec", 9, 9, b""),
    "an unknown namespace": seal_entry(BROKEN, MESH, "xyz", 9, 9, b""),
    "a payload too long": seal_entry(BROKEN, MESH, "dem", 9, 9, bytes(9000)),
    "a stranger's admission": seal_entry(CheapSigner("x", b"no"), MESH, "rec", 9, 9, b""),
    "a burial by a stranger": seal_burial(CheapSigner("x", b"no"), MESH, id_of(key_of("n1")), 1),
    "a burial by itself": seal_burial(CheapSigner("n1"), MESH, id_of(key_of("n1")), 1),
    "a burial ahead of its node": seal_burial(BROKEN, MESH, id_of(key_of("n1")), 50),
    "a burial of nobody": seal_burial(BROKEN, MESH, "nobodynobodynobo", 1),
}


@pytest.mark.parametrize("raw", WRONG.values(), ids=WRONG.keys())
def test_what_is_well_formed_but_wrong_is_refused(raw: bytes) -> None:
    world = mesh_of(4)
    member = world.nodes["n0"]
    root = member._intake.lattice.root
    member.heard(raw)
    assert member._intake.lattice.root == root


def test_versions_beyond_any_count_are_refused() -> None:
    world = mesh_of(4)
    member = world.nodes["n0"]
    root = member._intake.lattice.root
    for incarnation, version in ((2**62 + 1, 1), (1, 2**63), (2**64 - 1, 1)):
        member.heard(seal_entry(BROKEN, MESH, "rec", incarnation, version, b""))
    assert member._intake.lattice.root == root


def test_nobody_can_speak_for_another_or_reword_what_it_said() -> None:
    world = mesh_of(4)
    member = world.nodes["n0"]
    root = member._intake.lattice.root
    raw = world.nodes["n1"]._own.standing
    said = msgspec.msgpack.decode(raw, type=Entry)
    forged = seal_entry(BROKEN, MESH, "rec", 7, 7, said.payload)
    stolen = msgspec.structs.replace(
        msgspec.msgpack.decode(forged, type=Entry), key=key_of("n1"), admission=ADMITTED
    )
    longer = bytes([raw[0] + 1]) + raw[1:] + b"\xc0"
    for frame in (encode(stolen), longer, raw + b"\0"):
        member.heard(frame)
    assert member._intake.lattice.root == root


def test_an_owner_that_never_stops_is_heard_so_often_and_no_more() -> None:
    world = mesh_of(4)
    member = world.nodes["n0"]
    gate = member._intake.gate._verifier
    checks = gate.checks  # type: ignore[attr-defined]
    for version in range(1000):
        member.heard(seal_entry(BROKEN, MESH, "rec", 1, 10 + version, b""))
    assert gate.checks - checks <= FLOOD_BURST  # type: ignore[attr-defined]


def test_a_member_that_buries_everybody_is_answered_once() -> None:
    world = mesh_of(8)
    for _ in range(30):
        for name in ("n0", "n1", "n2", "n5", "n6", "n7"):
            burial = seal_burial(BROKEN, MESH, id_of(key_of(name)), world.nodes[name].incarnation)
            for other in set(world.nodes) - {"n3"}:
                world.nodes[other].heard(burial)
                world.run_effects(other)
        world.run(1)
    world.run_until(world.exact, 70)
    assert max(member.incarnation for member in world.nodes.values()) <= 12


def test_countless_owners_do_not_fill_the_memory() -> None:
    now_s = 0.0
    member = Member(CheapSigner("me"), CheapVerifier(), 1, lambda: now_s, Random(0))
    for number in range(OWNERS_MAX + 2000):
        member.heard(seal_entry(CheapSigner(f"o{number}"), MESH, "rec", 1, 1, b"x"))
        member.token(f"token{number}", up=True)
    intake = member._intake
    assert len(intake.lattice.owners) <= OWNERS_MAX
    assert len(intake.standings) <= OWNERS_MAX
    assert len(intake._flow) <= OWNERS_MAX
    assert len(intake.tokens) <= 2 * OWNERS_MAX


def test_a_summary_of_a_thousand_unknown_nodes_is_answered_within_a_message() -> None:
    world = mesh_of(4)
    member = world.nodes["n0"]
    marks = [messages.Mark("rec", 1, 1, 1)]
    summaries = [Summary(f"node{number:012}", marks) for number in range(1000)]
    reply = member.asked(encode(Sync(list(range(64)), summaries)))
    assert reply is not None
    assert len(reply) <= MESSAGE_MAX_BYTES
