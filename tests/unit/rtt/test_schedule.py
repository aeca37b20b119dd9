"""Whom to probe: needed, nearest, and few others; intervals that grow and shrink."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from meshd.rtt import schedule
from meshd.rtt.schedule import Choice, Turn

COUNTS = st.integers(0, 1500)


@given(COUNTS, st.integers(0, 5), st.integers(0, 40))
def test_all_needed_the_nearest_and_a_logarithm_of_others(
    count: int, epoch: int, needed_count: int
) -> None:
    peers = [f"n{number}" for number in range(count)]
    needed = frozenset(peers[:needed_count]) | {"stranger"}
    nearest = list(reversed(peers))
    choice = schedule.choose("me", [*peers, "me"], needed, [*nearest, "gone"], epoch)
    chosen = choice.peers
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(peers)
    assert set(choice.needed) == needed & set(peers)
    assert set(nearest[: schedule.NEAREST]) <= set(chosen)
    others = 2 + math.ceil(math.log2(max(count, 1)))
    assert len(chosen) <= len(choice.needed) + others + schedule.NEAREST + 1
    assert len(chosen) >= min(count, others)


def test_one_peer_more_or_less_changes_one_place() -> None:
    peers = [f"n{number}" for number in range(200)]
    before = set(schedule.choose("me", peers, frozenset(), (), 0).others)
    gone = sorted(before)[0]
    left = [one for one in peers if one != gone]
    after = set(schedule.choose("me", left, frozenset(), (), 0).others)
    assert before - after == {gone}
    assert len(after - before) == 1


def test_nodes_choose_evenly_and_explore_one_after_the_other() -> None:
    peers = [f"n{number}" for number in range(200)]
    asked = dict.fromkeys(peers, 0)
    for me in peers:
        for peer in schedule.choose(me, peers, frozenset(), (), 0).others:
            asked[peer] += 1
    assert max(asked.values()) <= 4 * schedule.others_count(199)
    choices = [schedule.choose("me", peers, frozenset(), (), epoch) for epoch in range(20)]
    assert len({choice.others for choice in choices}) == 1
    assert len({choice.explored for choice in choices}) >= 15


def test_needed_go_first_and_among_equals_the_longest_overdue() -> None:
    turns = {"a": Turn(1.0), "b": Turn(5.0), "c": Turn(4.0), "d": Turn(99.0)}
    assert schedule.next_peer(Choice(("b", "c", "d"), (), ("a",)), turns, 10.0) == "c"
    assert schedule.next_peer(Choice(("d",), ("b",), ("a", "c")), turns, 10.0) == "b"
    assert schedule.next_peer(Choice((), (), ("b", "c"), ("a",)), turns, 10.0) == "a"
    assert schedule.next_peer(Choice((), (), ("b", "c"), ("a",)), turns, 0.5) is None


def test_steady_answers_stretch_the_interval_and_another_one_shortens_it() -> None:
    turn, now_s = Turn(0.0), 0.0
    for _ in range(20):
        turn = schedule.answered(schedule.sent(turn, now_s), now_s, expected=True)
        now_s = turn.due_s
    assert turn.interval_s == schedule.MAX_INTERVAL_S
    turn = schedule.answered(turn, now_s, expected=False)
    assert turn.due_s == now_s + schedule.MOVED_INTERVAL_S


def test_silence_is_asked_again_soon_and_then_rarely() -> None:
    turn = Turn(0.0, interval_s=schedule.MAX_INTERVAL_S)
    intervals = []
    for _ in range(schedule.GIVE_UP_AFTER + 10):
        turn = schedule.lost(turn, 0.0)
        intervals.append(turn.interval_s)
    assert intervals[: schedule.GIVE_UP_AFTER] == [schedule.MOVED_INTERVAL_S] * 5
    assert intervals == sorted(intervals)
    assert intervals[-1] == schedule.MAX_INTERVAL_S
    assert schedule.answered(turn, 0.0, expected=False).losses == 0


@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 2))
def test_every_address_gets_its_turn_and_the_best_most(count: int, best: int, losses: int) -> None:
    best %= count
    picks = [
        schedule.address_index(Turn(0.0, count=turn, losses=losses), count, lambda _: True, best)
        for turn in range(64)
    ]
    assert set(picks) == set(range(count))
    if not losses:
        assert picks.count(best) >= 32
