"""How quick places are, and what that says of the next request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.speeds import Speed, Speeds, predicted_s

seconds = st.floats(0.001, 1000)


def test_nothing_is_known_at_first() -> None:
    assert Speeds().of("a") == Speed(0.0, Speed().service_s)


@given(st.lists(st.tuples(st.integers(1, 100_000), seconds), min_size=1, max_size=50))
def test_a_rate_is_never_beyond_those_measured(measured: list[tuple[int, float]]) -> None:
    speeds = Speeds()
    for tokens, took_s in measured:
        speeds.evaluated("a", tokens, took_s)
        speeds.served("a", took_s)
    rates = [tokens / took_s for tokens, took_s in measured]
    got = speeds.of("a")
    assert min(rates) * 0.999 <= got.prefill_tokens_s <= max(rates) * 1.001
    times = [took_s for _, took_s in measured]
    assert min(times) * 0.999 <= got.service_s <= max(times) * 1.001


def test_large_prompts_say_how_quick_it_is_and_small_ones_little() -> None:
    speeds = Speeds()
    for _ in range(100):
        speeds.evaluated("a", 10_000, 10.0)
        speeds.evaluated("a", 5, 0.2)
    assert 900 < speeds.of("a").prefill_tokens_s < 1000


def test_what_was_lately_counts_for_more() -> None:
    speeds = Speeds()
    for rate in (2000, 500):
        for _ in range(60):
            speeds.evaluated("a", rate, 1.0)
            speeds.served("a", 1000 / rate)
    assert speeds.of("a").prefill_tokens_s == pytest.approx(500, rel=0.1)
    assert speeds.of("a").service_s == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(("tokens", "took_s"), [(0, 1.0), (-5, 1.0), (10, 0.0), (10, -1.0)])
def test_what_measures_nothing_changes_nothing(tokens: int, took_s: float) -> None:
    speeds = Speeds()
    speeds.evaluated("a", 100, 1.0)
    speeds.served("a", 3.0)
    speeds.evaluated("a", tokens, took_s)
    speeds.served("a", min(0.0, took_s))
    assert speeds.of("a") == Speed(100.0, 3.0)


def test_a_place_that_is_not_known_is_taken_for_an_average_one() -> None:
    speeds = Speeds()
    for where, rate, took_s in (("a", 100, 2.0), ("b", 300, 4.0)):
        speeds.evaluated(where, rate, 1.0)
        speeds.served(where, took_s)
    speeds.served("only served", 6.0)
    assert speeds.of("c") == Speed(200.0, 4.0)
    assert speeds.of("only served") == Speed(200.0, 6.0)


def test_only_the_places_heard_of_last_are_kept() -> None:
    speeds = Speeds()
    for number in range(4096):
        speeds.evaluated(str(number), 100, 1.0)
    speeds.evaluated("0", 100, 1.0)  # heard of again
    speeds.evaluated("new", 900, 1.0)
    others = speeds.of("never heard of")
    assert speeds.of("new").prefill_tokens_s == 900
    assert speeds.of("0").prefill_tokens_s == pytest.approx(100, rel=0.02)
    assert speeds.of("1") == others  # gave way
    assert len(speeds._places) == 4096


def test_a_prediction_is_the_way_the_queue_and_the_prompt() -> None:
    speed = Speed(prefill_tokens_s=1000, service_s=8.0)

    def expected_s(load: int, tokens: int = 500, slots: int = 4) -> float:
        return predicted_s(speed, rtt_ms=10.0, load=load, slots=slots, prompt_tokens=tokens)

    assert expected_s(0) == expected_s(3) == pytest.approx(0.51)
    assert expected_s(4) == pytest.approx(0.51 + 2.0)  # one of the four must end
    assert expected_s(7) == pytest.approx(0.51 + 8.0)
    assert expected_s(0, tokens=0) == pytest.approx(0.01)
    unknown = predicted_s(Speed(), rtt_ms=0.0, load=0, slots=1, prompt_tokens=9000)
    assert unknown == 0.0


@given(seconds, st.integers(0, 100), st.integers(1, 16), st.integers(0, 10**6))
def test_more_load_or_a_longer_prompt_is_never_quicker(
    service_s: float, load: int, slots: int, tokens: int
) -> None:
    speed = Speed(700.0, service_s)

    def expected_s(load: int, tokens: int) -> float:
        return predicted_s(speed, rtt_ms=1.0, load=load, slots=slots, prompt_tokens=tokens)

    assert 0 < expected_s(load, tokens) <= expected_s(load + 1, tokens)
    assert expected_s(load, tokens) <= expected_s(load, tokens + 1)
