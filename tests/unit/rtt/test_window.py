"""Windows fall and rise, forget, stay bounded, and tell a change from noise."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from meshd.rtt.window import MAX_AGE_S, MAX_SAMPLES, RttWindow, Sample, Samples, Source, differs

RTTS = st.lists(st.floats(0.0, 5000.0, allow_nan=False), min_size=1, max_size=60)


def filled(values: list[float], step_s: float = 1.0) -> Samples:
    samples = Samples()
    for at, value in enumerate(values):
        samples = samples.add(Sample(at * step_s, value))
    return samples


def window(samples: Samples, now_s: float) -> RttWindow:
    found = samples.window(now_s)
    assert found is not None
    return found


@given(RTTS)
def test_figures_are_those_of_the_samples_kept_and_in_order(values: list[float]) -> None:
    samples = filled(values)
    kept = [one.rtt_ms for one in samples.kept]
    found = window(samples, len(values) - 1)
    assert 1 <= len(kept) <= MAX_SAMPLES
    assert kept == values[-len(kept) :]
    assert (found.min_ms, found.median_ms) == (min(kept), statistics.median(kept))
    assert found.median_ms <= found.p95_ms <= max(kept)
    assert (found.age_s, found.samples) == (0.0, len(kept))


@given(RTTS, st.floats(0.0, 5000.0), st.floats(0.0, 5000.0))
def test_a_new_level_is_all_that_is_left_after_as_many_samples_as_are_kept(
    values: list[float], level: float, other: float
) -> None:
    for value in (level, other):
        values = [*values, *[value] * MAX_SAMPLES]
        found = window(filled(values), len(values))
        assert found.min_ms == found.median_ms == found.p95_ms == value


@given(
    st.lists(st.floats(9.5, 10.5), min_size=2, max_size=40),
    st.lists(st.floats(49.0, 51.0), min_size=5, max_size=5),
)
def test_a_path_that_became_longer_or_shorter_shows_in_five_samples(
    near: list[float], far: list[float]
) -> None:
    assert window(filled([*near, *far]), 99).min_ms >= 49.0
    assert window(filled([*far, *near[:1] * 5]), 99).p95_ms <= 10.5


def test_four_slow_answers_are_no_new_path() -> None:
    found = window(filled([10.0] * 16 + [50.0] * 4), 20)
    assert (found.min_ms, found.median_ms, found.p95_ms) == (10.0, 10.0, 50.0)


def test_one_outlier_in_twenty_is_not_in_the_figures() -> None:
    found = window(filled([10.0] * 19 + [500.0]), 20)
    assert (found.median_ms, found.p95_ms) == (10.0, 10.0)


def test_old_samples_leave_with_time() -> None:
    samples = Samples().add(Sample(0.0, 5.0)).add(Sample(100.0, 9.0))
    assert window(samples, 150.0).age_s == 50.0
    assert window(samples, MAX_AGE_S + 50.0).min_ms == 9.0
    assert samples.window(MAX_AGE_S + 101.0) is None


def test_impossible_values_are_passed_over() -> None:
    for value in (float("nan"), float("inf"), -1.0, 1e9):
        assert Samples().add(Sample(0.0, value)).kept == ()


def test_noise_of_a_noisy_link_is_expected_and_a_change_is_not() -> None:
    noisy = filled([10.0, 18.0, 12.0, 25.0, 14.0, 9.0, 20.0, 16.0])
    assert noisy.expects(26.0)
    assert not noisy.expects(80.0)
    quiet = filled([10.0] * 8)
    assert quiet.expects(11.9)
    assert not quiet.expects(13.0)
    assert not Samples().expects(1.0)


def test_the_source_of_samples_is_known() -> None:
    tcp = Samples().add(Sample(0.0, 1.0, Source.TCP))
    assert not tcp.pinged()
    assert tcp.add(Sample(1.0, 1.0)).pinged()


def test_differs_by_the_larger_of_a_fifth_and_two_milliseconds() -> None:
    assert not differs(0.2, 2.1)
    assert differs(0.2, 2.3)
    assert differs(8.0, 10.1)
    assert not differs(100.0, 119.0)
    assert differs(100.0, 121.0)
    assert differs(100.0, 79.0)
