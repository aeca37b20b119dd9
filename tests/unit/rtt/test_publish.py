"""What others are told of our windows: the nearest and the needed, and only what changed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from meshd.mesh.record import RttRecord
from meshd.rtt.publish import LIMIT, revise, worth
from meshd.rtt.window import RttWindow, differs

FIGURE = st.floats(0.0, 500.0)


def at(rtt_ms: float, p95_ms: float | None = None) -> RttWindow:
    return RttWindow(rtt_ms, rtt_ms, rtt_ms if p95_ms is None else p95_ms, 0.0, 1)


def test_needed_first_then_nearest_and_no_more_than_the_limit() -> None:
    windows = {f"n{number:03}": at(float(number)) for number in range(100)}
    told = revise((), windows, {"n099", "n050"})
    assert [one.peer for one in told] == ["n050", "n099", *(f"n{i:03}" for i in range(30))]
    assert len(told) == LIMIT


@given(FIGURE, FIGURE)
def test_a_record_changes_exactly_when_a_figure_differs(old: float, new: float) -> None:
    told = revise((), {"a": at(old)}, ())
    again = revise(told, {"a": at(new)}, ())
    assert (again != told) == differs(told[0].median_ms, round(new, 2))


def test_each_figure_counts() -> None:
    old = RttRecord("a", 10.0, 20.0, 30.0)
    assert worth(old, RttRecord("a", 13.0, 20.0, 30.0))
    assert worth(old, RttRecord("a", 10.0, 25.0, 30.0))
    assert worth(old, RttRecord("a", 10.0, 20.0, 37.0))
    assert not worth(old, RttRecord("a", 11.9, 23.9, 35.9))


def test_slow_drift_is_told_against_what_was_told_last() -> None:
    told = revise((), {"a": at(100.0)}, ())
    changes = 0
    for step in range(1, 101):
        again = revise(told, {"a": at(100.0 + step)}, ())
        changes += again != told
        told = again
    assert 2 <= changes <= 4
    assert not differs(told[0].median_ms, 200.0)


def test_a_newcomer_takes_a_place_only_when_it_is_clearly_nearer() -> None:
    windows = {f"n{number:03}": at(50.0) for number in range(LIMIT)}
    told = revise((), windows, ())
    assert revise(told, windows | {"near": at(45.0)}, ()) == told
    assert "near" in {one.peer for one in revise(told, windows | {"near": at(30.0)}, ())}
    assert "far" in {one.peer for one in revise(told, windows | {"far": at(300.0)}, {"far"})}


def test_jitter_among_many_peers_says_nothing() -> None:
    rng = random.Random(3)
    base = {f"n{number:03}": 1.0 + number for number in range(60)}
    told = revise((), {peer: at(rtt) for peer, rtt in base.items()}, ())
    for _ in range(200):
        noisy = {peer: at(rtt * rng.uniform(0.95, 1.05)) for peer, rtt in base.items()}
        assert revise(told, noisy, ()) == told


def test_a_peer_that_is_gone_is_gone_from_the_records() -> None:
    told = revise((), {"a": at(1.0), "b": at(2.0)}, ())
    assert [one.peer for one in revise(told, {"b": at(2.0)}, ())] == ["b"]
