"""Whose turn it is: fair between keys whatever their numbers, and nobody starves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.fair_queue import (
    HEAD_START_S,
    PRIORITY_MOST,
    Admission,
    FairQueue,
    Ticket,
    admission,
)
from meshd.keys.key import LEAST_PRIORITY, MOST_PRIORITY


def serve(queue: FairQueue[str], now_s: float) -> str:
    ticket = queue.next()
    assert ticket is not None
    assert queue.serve(ticket, now_s)
    return ticket.key


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_keys_get_equal_shares_whatever_they_ask(counts: list[int], random: object) -> None:
    """While all of them wait, none is ever two turns ahead of another."""
    queue: FairQueue[str] = FairQueue()
    order = [f"k{key}" for key, count in enumerate(counts) for _ in range(count)]
    random.shuffle(order)  # type: ignore[attr-defined]
    for at_s, key in enumerate(order):
        queue.add(key, key, now_s=float(at_s))
    left, had = Counter(order), Counter[str]()
    for turn in range(len(order)):
        key = serve(queue, 1000.0 + turn)
        left[key] -= 1
        had[key] += 1
        waiting = [had[name] for name, count in left.items() if count]
        assert not waiting or max(waiting) - min(waiting) <= 1
        assert had[key] <= min(waiting, default=had[key]) + 1
    assert len(queue) == 0


@given(st.integers(1, 200), st.integers(1, 20))
def test_one_that_comes_after_a_flood_waits_for_one_turn(flood: int, slots: int) -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(flood):
        queue.add("x", "flood", now_s=0.0)
    for turn in range(slots):
        if len(queue):
            serve(queue, 1.0 + turn)
    quiet = queue.add("x", "quiet", now_s=50.0)
    assert queue.ahead(quiet) <= 1
    assert "quiet" in [serve(queue, 60.0 + turn) for turn in range(min(2, len(queue)))]


def test_within_a_key_who_came_first_is_first() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(20):
        queue.add(number, "a", now_s=5.0)
    served = []
    while (ticket := queue.next()) is not None:
        served.append(ticket.item)
        queue.serve(ticket, 6.0)
    assert served == [*range(20)]


def test_priorities_are_those_of_key_files() -> None:
    assert (LEAST_PRIORITY, MOST_PRIORITY) == (-PRIORITY_MOST, PRIORITY_MOST)
    queue: FairQueue[str] = FairQueue()
    for priority in range(LEAST_PRIORITY, MOST_PRIORITY + 1):
        queue.add(str(priority), f"k{priority}", priority, now_s=0.0)
    served = []
    while (ticket := queue.next()) is not None:
        served.append(int(ticket.item))
        queue.serve(ticket, 1.0)
    assert served == [*range(MOST_PRIORITY, LEAST_PRIORITY - 1, -1)]


@given(st.integers(0, PRIORITY_MOST), st.integers(-PRIORITY_MOST, 0))
def test_a_low_priority_is_late_by_a_bounded_time_and_does_not_starve(high: int, low: int) -> None:
    """A flood of high priority that never ends; one request is served each second."""
    queue: FairQueue[str] = FairQueue()
    queue.add("low", "low", low, now_s=0.0)
    now_s, latest_s = 0.0, (high - low) * HEAD_START_S + 2.0
    while True:
        queue.add("high", "high", high, now_s=now_s)
        if serve(queue, now_s) == "low":
            break
        now_s += 1.0
        assert now_s <= latest_s
    assert now_s >= (high - low) * HEAD_START_S - 2.0 or high == low


def test_one_that_lost_its_place_through_no_fault_goes_first() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("high", "a", PRIORITY_MOST, now_s=0.0)
    back = queue.add("back", "b", -PRIORITY_MOST, now_s=9.0, first=True)
    assert queue.next() is back
    assert queue.ahead(back) == 0


def test_who_cannot_be_helped_is_passed_over_and_keeps_its_place() -> None:
    queue: FairQueue[str] = FairQueue()
    first = queue.add("no", "a", now_s=0.0)
    second = queue.add("yes", "a", now_s=1.0)
    assert queue.next(lambda item: item == "yes") is second
    queue.serve(second, 2.0)
    assert queue.next() is first
    assert queue.next(lambda _: False) is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(-2, 2), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_what_was_removed_leaves_nothing(entries: list[tuple[str, int, bool]]) -> None:
    queue: FairQueue[int] = FairQueue()
    tickets: list[Ticket[int]] = [
        queue.add(number, key, priority, now_s=float(number), first=first)
        for number, (key, priority, first) in enumerate(entries)
    ]
    assert sorted(ticket.item for ticket in queue) == [*range(len(tickets))]
    for ticket in tickets:
        assert ticket in queue
        assert queue.ahead(ticket) < len(queue)
        assert queue.remove(ticket)
        assert not queue.remove(ticket)
        assert not queue.serve(ticket, 1e6)
        assert ticket not in queue
        assert queue.ahead(ticket) == 0
    assert (len(queue), queue.next(), queue._lines) == (0, None, {})


@given(st.integers(0, 6), st.integers(0, 6))
def test_how_many_are_ahead_is_exact_where_priorities_are_equal(mine: int, others: int) -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(others):
        queue.add("x", "b", now_s=float(number))
    for number in range(mine):
        queue.add("x", "a", now_s=100.0 + number)
    ticket = queue.add("mine", "a", now_s=200.0)
    told, turns = queue.ahead(ticket), 0
    while (following := queue.next()) is not ticket:
        assert following is not None
        queue.serve(following, 300.0 + turns)
        turns += 1
    assert turns == told


@given(st.integers(1, 300), st.integers(1, 8))
def test_no_number_of_keys_can_fill_the_room_for_one_that_has_nothing(
    limit: int, greedy: int
) -> None:
    """Each takes all that it is given; then a newcomer still finds a place, or all are taken by
    different keys.
    """
    held: Counter[str] = Counter()
    for key in (f"k{number}" for number in range(greedy)):
        while admission(held.total(), held[key], limit) is Admission.ENTER:
            held[key] += 1
    assert held.total() <= limit
    newcomer = admission(held.total(), 0, limit)
    assert newcomer is Admission.ENTER or all(held.values())
    if greedy == 1 and limit > 2:
        assert newcomer is Admission.ENTER
        assert held["k0"] <= limit * 4 / 5 + 1
        assert admission(held.total(), held["k0"], limit) is Admission.KEY_FULL


def test_a_room_without_places_takes_nobody() -> None:
    assert admission(0, 0, 0) is Admission.FULL
    assert admission(5, 0, 5) is Admission.FULL
    assert admission(4, 0, 5) is Admission.ENTER
    assert admission(4, 1, 5) is Admission.KEY_FULL
