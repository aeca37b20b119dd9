"""Rendezvous: who leaves or comes moves only its share, and shares go by slots."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.affinity import BALANCE, capacity, identity, mix, weight

keys = st.integers(1, 2**64 - 1)
nodes = st.lists(st.text("abcdef0123456789", min_size=1, max_size=12), min_size=2, unique=True)


def home(key: int, shares: dict[str, int]) -> str:
    return max(shares, key=lambda node: weight(key, identity(node, "m"), shares[node]))


@given(keys, nodes, st.data())
def test_a_key_moves_only_when_its_own_target_leaves(
    key: int, names: list[str], data: st.DataObject
) -> None:
    shares = {name: data.draw(st.integers(1, 16)) for name in names}
    gone = data.draw(st.sampled_from(names))
    before = home(key, shares)
    after = home(key, {name: share for name, share in shares.items() if name != gone})
    assert (after == before) is (before != gone)


@given(keys, nodes, st.data())
def test_a_target_that_gains_slots_takes_keys_only_for_itself(
    key: int, names: list[str], data: st.DataObject
) -> None:
    shares = {name: data.draw(st.integers(1, 16)) for name in names}
    grown = data.draw(st.sampled_from(names))
    after = home(key, {**shares, grown: shares[grown] + 4})
    assert after in (home(key, shares), grown)


def test_keys_are_spread_in_proportion_to_slots() -> None:
    shares = {"a": 1, "b": 2, "c": 4, "d": 8}
    chance = random.Random(1)
    count = 30_000
    homes = [home(chance.getrandbits(64), shares) for _ in range(count)]
    for name, share in shares.items():
        expected = count * share / sum(shares.values())
        # Of a fair draw five standard deviations are missed once in two million.
        assert abs(homes.count(name) - expected) < 5 * expected**0.5


def test_keys_of_one_model_say_nothing_of_anothers() -> None:
    pairs = [(mix(n), identity("a", "m"), identity("a", "n")) for n in range(2000)]
    same = sum((weight(key, one) > 1.44) == (weight(key, two) > 1.44) for key, one, two in pairs)
    assert 850 < same < 1150


@given(st.integers(0, 2**64 - 1))
def test_mix_stays_in_64_bits_and_a_weight_is_a_positive_number(key: int) -> None:
    assert 0 <= mix(key) < 2**64
    assert 0 < weight(key, identity("a", "m"), 3.0) < float("inf")


def test_mix_loses_nothing() -> None:
    assert len({mix(number) for number in range(100_000)}) == 100_000


def test_an_identity_is_the_same_in_every_gateway() -> None:
    # Figures of another process: a change moves all conversations of a mesh at an upgrade.
    assert identity("node-1", "coder") == 0x36FF615DE6441BD0
    assert identity("a", "bc") != identity("ab", "c")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 16)), min_size=1, max_size=20))
def test_somebody_always_has_room_and_nobody_gets_more_than_the_bound(
    targets: list[tuple[int, int]],
) -> None:
    """:param targets: load and slots of each."""
    load, slots = (sum(column) for column in zip(*targets, strict=True))
    room = [
        (mine, count, most)
        for mine, count in targets
        if mine < (most := capacity(load, count, slots))
    ]
    assert room
    for mine, count, most in room:
        assert mine + 1 <= most < BALANCE * count * max(slots, load + 1) / slots + 1


def test_a_bound_that_is_a_whole_number_is_not_rounded_up() -> None:
    assert capacity(20, 9, 9) == 63


@given(st.integers(1, 16), st.integers(1, 200))
def test_a_free_slot_is_no_overload(slots: int, others: int) -> None:
    assert capacity(slots - 1, slots, slots + others) >= slots
