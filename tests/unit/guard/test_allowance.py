"""When a call is lost, under a clock that only counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.guard.allowance import (
    FLOOR_S,
    IDLE,
    LOADING_FLOOR_S,
    Pace,
    Waiting,
    Work,
    allowance_s,
    learned,
    lost,
)

TOKEN = Work(graphs=1, moved_bytes=40_000, computed=True)
UBATCH = Work(graphs=1, moved_bytes=16_000_000, computed=True)


def after(pace: Pace, *answered: tuple[Work, float]) -> Pace:
    for work, seconds in answered:
        pace = learned(pace, work, seconds)
    return pace


def test_a_token_that_does_not_come_is_noticed_in_under_five_seconds() -> None:
    pace = after(Pace(20.0), (TOKEN, 0.08))
    assert lost(Waiting(100.0, TOKEN), pace, 103.0) == ""
    assert "no byte for 3.1 s, 3.0 s are allowed" in lost(Waiting(100.0, TOKEN), pace, 103.1)


def test_nothing_is_lost_where_nothing_waits() -> None:
    assert lost(IDLE, Pace(20.0), 1e9) == ""


def test_a_first_prompt_gets_what_the_planner_expects() -> None:
    pace = after(Pace(20.0), (TOKEN, 0.5))
    assert allowance_s(UBATCH, pace) > 4 * 20.0
    assert allowance_s(Work(1, 40_000), Pace(20.0)) > 4 * 20.0


def test_a_long_prompt_on_a_slow_machine_is_never_lost() -> None:
    """100k tokens: micro-batches of 512, each slower than the last, from 20 s to three minutes;
    what is sent grows with the mask. A token of decoding stays a token.
    """
    pace = after(Pace(20.0), (TOKEN, 0.8))
    for number in range(196):
        seconds = 20.0 + number * 0.82
        work = Work(1, 512 * 8192 * 4 + 512 * 512 * 2 * number, computed=True)
        assert lost(Waiting(0.0, work), pace, seconds) == ""
        pace = learned(pace, work, seconds)
    assert allowance_s(TOKEN, pace) < 5.0


def test_a_machine_much_slower_than_the_planner_thinks() -> None:
    """Its first micro-batch may take four times as long, and the next ones follow it."""
    pace = Pace(5.0)
    for seconds in (20.0, 60.0, 90.0):
        assert lost(Waiting(0.0, UBATCH), pace, seconds) == ""
        pace = learned(pace, UBATCH, seconds)


def test_weights_before_a_first_token_say_nothing_of_prompts() -> None:
    """The server was sent a gigabyte, computed once, and answered in a moment."""
    pace = after(Pace(20.0), (Work(1, 1_000_000_000), 0.3), (TOKEN, 0.05))
    assert allowance_s(UBATCH, pace) > 4 * 20.0


def test_one_bad_moment_is_forgotten() -> None:
    pace = after(Pace(20.0), (TOKEN, 10.0))
    assert allowance_s(TOKEN, pace) == 60.0
    pace = after(pace, *[(TOKEN, 0.05)] * 300)
    assert allowance_s(TOKEN, pace) == FLOOR_S


def test_loading_is_given_time_by_its_bytes() -> None:
    assert allowance_s(Work(), Pace(20.0)) == LOADING_FLOOR_S
    assert allowance_s(Work(moved_bytes=4_000_000_000), Pace(20.0)) > 200
    assert allowance_s(Work(stored_bytes=4_000_000_000), Pace(20.0)) > 200
    assert allowance_s(Work(computed=True), Pace(20.0)) == FLOOR_S
    assert allowance_s(Work(1, 40_000, 4_000_000_000, computed=True), after(
        Pace(20.0), (TOKEN, 0.1))) > 200  # fmt: skip


def test_more_than_one_computation_for_an_answer() -> None:
    pace = after(Pace(20.0), (TOKEN, 2.0))
    assert allowance_s(Work(3, 40_000, computed=True), pace) == pytest.approx(
        3 * allowance_s(TOKEN, pace)
    )


def test_a_first_computation_may_compile_a_gpus_programs() -> None:
    first = replace(TOKEN, computed=False)
    assert allowance_s(first, Pace(0.1)) > LOADING_FLOOR_S
    assert allowance_s(first, after(Pace(0.1), (TOKEN, 0.05)).anew()) == LOADING_FLOOR_S
    assert allowance_s(TOKEN, after(Pace(0.1), (TOKEN, 0.05))) == FLOOR_S


def test_what_was_learned_outlives_a_connection_but_the_next_one_loads_first() -> None:
    pace = after(Pace(20.0), (TOKEN, 2.0)).anew()
    assert allowance_s(TOKEN, pace) == 12.0
    assert not pace.computed
