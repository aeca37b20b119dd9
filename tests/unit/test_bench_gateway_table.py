"""How the benchmark of the gateway sums up, and what it says of the goals."""

from __future__ import annotations

import pytest

from tools.bench_gateway import asked, figures, report
from tools.bench_gateway.figures import Figures
from tools.bench_gateway.request_rate import Rate
from tools.bench_gateway.stream_load import Held, Streamed
from tools.bench_gateway.table import render


def _rates(*per_core: float) -> list[Rate]:
    return [Rate(answered=int(one * 2), failed=0, wall_s=2.5, cpu_s=2.0) for one in per_core]


def _streamed(first_ms: float, uneven_ms: float) -> list[Streamed]:
    return [Streamed([first_ms] * 10, [uneven_ms] * 10, tokens=1000, cpu_s=0.1, busy=0.5)]


def _figures(name: str, per_core: float, first_ms: float, uneven_ms: float) -> Figures:
    return Figures(
        name,
        _rates(per_core),
        _rates(per_core / 10),
        {streams: _streamed(first_ms, uneven_ms) for streams in figures.STREAMS},
    )


def test_a_percentile_is_one_of_the_values() -> None:
    assert figures.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert figures.percentile([*map(float, range(100))], 0.99) == 99.0
    assert figures.percentile([7.0], 0.99) == 7.0
    assert figures.percentile([], 0.5) is None


def test_the_rounds_median_counts() -> None:
    assert figures.per_core(_rates(100, 900, 300)) == 300
    assert figures.per_core([Rate(0, 4, 1.0, 0.5)]) is None
    mine = [Streamed([5.0]), Streamed([9.0]), Streamed([6.0])]
    direct = [Streamed([1.0]), Streamed([1.0]), Streamed([3.0])]
    assert figures.over(mine, direct, lambda one: one.first_ms, 0.5) == 4.0
    assert figures.over(mine, None, lambda one: one.first_ms, 0.5) == 6.0
    # A round without a stream that began says nothing.
    assert figures.over([Streamed()], direct[:1], lambda one: one.first_ms, 0.5) is None


def test_the_table_says_which_goals_are_missed() -> None:
    direct = Figures("direct", streamed={128: _streamed(0.2, 0.1)})
    ours = _figures("meshd 123", per_core=1500, first_ms=1.1, uneven_ms=3.0)
    ours.held = Held(streams=1000, pss_bytes=149_000_000, before_bytes=50_000_000)
    smg = _figures("smg 1.13.0", per_core=2000, first_ms=0.6, uneven_ms=0.5)
    litellm = _figures("litellm 1", per_core=50, first_ms=60, uneven_ms=40)
    text = render([direct, ours, smg, litellm])
    assert "≥ 0.8 x smg: MISSED, 0.75 x; ≥ 10 x litellm: met, 30.00 x" in text
    assert "| +0.90 ms / +0.90 ms | +0.40 ms / +0.40 ms |" in text
    assert "≤ 1 ms: met; ≤ 5 ms: met" in text
    assert "≤ 2 ms: MISSED" in text
    assert "≤ 150 MB with 1,000: met" in text
    ours.held = Held(streams=999, pss_bytes=1, before_bytes=1)
    assert "≤ 150 MB with 1,000: MISSED" in render([direct, ours])


def test_requests_have_the_size_that_is_measured() -> None:
    for size in (figures.SMALL_BYTES, figures.LARGE_BYTES):
        head, _, body = asked.plain(size).partition(b"\r\n\r\n")
        assert abs(len(body) - size) < 60
        assert f"Content-Length: {len(body)}".encode() in head


def test_a_new_run_replaces_the_last_ones_section() -> None:
    marks = (report._BEGIN, report._END)
    document = f"above\n{marks[0]}\nold\n{marks[1]}\nbelow\n"
    once = report.replaced(document, "new")
    assert once == f"above\n{marks[0]}\nnew\n{marks[1]}\nbelow\n"
    assert report.replaced(once, "new") == once
    for broken in ("none", f"{marks[1]} {marks[0]}"):
        with pytest.raises(ValueError, match="lacks"):
            report.replaced(broken, "new")
