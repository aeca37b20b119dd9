"""The division of small layers against every division that there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from meshd.planner.spread import room, spread, together
from tests.unit.planner_shards.rankings import falling

LAYERS = (
    (50, 30, 10, 5, 3, 2),
    (20, 19, 18, 16, 14, 13),
    (90, 2, 2, 2, 2, 2),
    (40, 20, 20, 10, 6, 3, 1),
    (9, 8, 7, 6, 5, 4, 3, 2),
    (128, 64, 32, 16, 8, 4, 2, 1),
    (1000, 1, 1, 1, 1, 1, 1, 0),
    (88, 86, 57, 29, 19, 15, 14, 3),
    (7, 7, 7, 7, 7, 7, 7, 7),
    (3094, 1075, 915, 539, 457, 374, 364, 235),
)
TOLERANCE = 0.02
"""Of all choices: what the plan's worst node may keep less than the best possible one."""


def cases() -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for counts in LAYERS:
        for nodes in (2, 3):
            for rooms in itertools.combinations_with_replacement(range(1, len(counts)), nodes):
                if sum(rooms) >= len(counts):
                    yield counts, rooms


def best(counts: tuple[int, ...], rooms: tuple[int, ...], shared: int) -> float:
    """What the worst node keeps at most, over all divisions that give each expert a home, and the
    most chosen to every node that has room for them.
    """
    states = {0: float("inf")}
    for size in rooms:
        core = tuple(range(min(shared, size)))
        rest = range(len(core), len(counts))
        choices = [(*core, *chosen) for chosen in itertools.combinations(rest, size - len(core))]
        following: dict[int, float] = {}
        for ids in choices:
            bits, mass = sum(1 << one for one in ids), sum(counts[one] for one in ids)
            for covered, least in states.items():
                both = covered | bits
                following[both] = max(following.get(both, -1.0), min(least, mass))
        states = following
    return states[(1 << len(counts)) - 1]


def test_no_division_lets_the_worst_node_keep_much_more() -> None:
    tried = 0
    for counts, rooms in cases():
        found = room(len(counts), rooms, 1)
        assert found is not None
        dealt = spread(counts, found, (0,) * len(rooms))
        masses = [sum(counts[rank] for rank in ranks) for ranks in dealt]
        assert sum(masses) == together(counts, found)
        assert set().union(*dealt) == set(range(len(counts)))
        assert [len(set(ranks)) for ranks in dealt] == list(rooms)
        missed = best(counts, rooms, found.shared) - min(masses)
        assert missed <= TOLERANCE * sum(counts), (counts, rooms, dealt)
        tried += 1
    assert tried > 500


@pytest.mark.parametrize("rooms", [(200, 100), (130, 130), (40, 80, 160), (90,) * 4])
def test_nodes_whose_rooms_differ_much_keep_the_same_where_that_can_be(
    rooms: tuple[int, ...],
) -> None:
    (counts,) = falling(1, 256).counts
    counts = tuple(sorted(counts, reverse=True))
    found = room(256, rooms, 1)
    assert found is not None
    dealt = spread(counts, found, (0,) * len(rooms))
    least = min(sum(counts[rank] for rank in ranks) for ranks in dealt)
    alone = sum(counts[: min(rooms)])
    even = together(counts, found) / len(rooms)
    assert least >= min(alone, even) - 0.01 * sum(counts)


def test_two_homes_are_found_wherever_there_is_room_for_them() -> None:
    for counts, rooms in cases():
        found = room(len(counts), rooms, 2)
        # On each node an expert is at most once, so that two nodes alone need all of the room.
        possible = len(rooms) > 2 and sum(rooms) >= 2 * len(counts)
        assert (found is not None) == possible
        if found is None:
            continue
        dealt = spread(counts, found, (0,) * len(rooms))
        assert [len(set(ranks)) for ranks in dealt] == list(rooms)
        for rank in range(len(counts)):
            assert sum(rank in ranks for ranks in dealt) >= 2, (counts, rooms, dealt)


@pytest.mark.parametrize("rooms", [(), (3, 4), (1,) * 7])
def test_experts_without_a_home_are_not_dealt(rooms: tuple[int, ...]) -> None:
    assert room(8, rooms, 1) is None
