"""The merge laws, and digests that tell the truth."""

from __future__ import annotations

import itertools
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.mesh.envelope import seal_burial, seal_entry
from meshd.mesh.intake import Intake
from meshd.mesh.lattice import OWNERS_MAX, Lattice, Slot, mark_of
from meshd.mesh.membership import LEFT, hold_payload
from tests.unit.mesh.mesh_world import MESH, CheapSigner, CheapVerifier, id_of, key_of

OWNERS = ("a", "b", "c")

slots = st.builds(
    lambda incarnation, version, content: Slot(
        incarnation, version, content, content, mark_of(content), 0.0
    ),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([b"x", b"y", b"z"]),
)
writes = st.lists(
    st.tuples(st.sampled_from(OWNERS), st.sampled_from(["rec", "dem"]), slots), max_size=30
)


def lattice_of(changes: list[tuple[str, str, Slot]]) -> Lattice:
    lattice = Lattice()
    for owner, space, slot in changes:
        lattice.put(owner, space, slot)
    return lattice


@given(writes, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_order_and_repetition_make_no_difference(
    changes: list[tuple[str, str, Slot]], random: Random
) -> None:
    shuffled = changes + random.choices(changes, k=len(changes)) if changes else []
    random.shuffle(shuffled)
    one, other = lattice_of(changes), lattice_of(shuffled)
    assert one.owners == other.owners
    assert (one.root, one.buckets, one.size_bytes) == (other.root, other.buckets, other.size_bytes)


@given(writes, writes)
@settings(max_examples=300, deadline=None)
def test_equal_digests_stand_for_equal_contents(
    some: list[tuple[str, str, Slot]], others: list[tuple[str, str, Slot]]
) -> None:
    one, other = lattice_of(some), lattice_of(others)
    assert (one.owners == other.owners) == (one.root == other.root)
    assert bool(one.differing(other.buckets)) == (one.root != other.root)


@given(writes)
@settings(max_examples=100, deadline=None)
def test_what_is_dropped_leaves_no_trace(changes: list[tuple[str, str, Slot]]) -> None:
    lattice = lattice_of(changes)
    for owner in list(lattice.owners):
        lattice.drop_owner(owner)
    assert (lattice.root, lattice.size_bytes, lattice.owners) == (0, 0, {})


def signed_items() -> list[bytes]:
    """Words of two owners and burials of them, over three incarnations."""
    items = []
    for name in ("a", "b"):
        signer = CheapSigner(name)
        for incarnation, version in itertools.product((1, 2, 3), (1, 2)):
            items += [
                seal_entry(signer, MESH, space, incarnation, version, b"said")
                for space in ("rec", "dem")
            ]
        for incarnation, payload in ((1, LEFT), (2, hold_payload(5)), (2, LEFT), (3, b"a")):
            items.append(seal_entry(signer, MESH, "st", incarnation, len(payload), payload))
        for incarnation in (1, 2, 3):
            for core in ("c", "d"):
                node = id_of(key_of(name))
                items.append(seal_burial(CheapSigner(core), MESH, node, incarnation))
    return items


ITEMS = signed_items()


@given(st.lists(st.sampled_from(ITEMS), max_size=25), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_who_lives_is_agreed_on_whatever_order_the_words_came_in(
    heard: list[bytes], random: Random
) -> None:
    """A burial may come before what proves its incarnation, so words are offered again, as the
    comparison does.
    """
    ends = []
    for _ in range(2):
        intake = Intake("me", CheapVerifier(), 1)
        random.shuffle(heard)
        for _ in range(4):
            for raw in heard:
                intake.absorb(raw, 0.0, put=False)
        ends.append(intake)
    assert ends[0].standings == ends[1].standings
    assert ends[0].lattice.root == ends[1].lattice.root


def test_owners_are_bounded() -> None:
    lattice = Lattice()
    for number in range(OWNERS_MAX + 10):
        lattice.put(f"n{number}", "rec", Slot(1, 1, b"x", b"x", 1, 0.0))
    assert len(lattice.owners) == OWNERS_MAX
