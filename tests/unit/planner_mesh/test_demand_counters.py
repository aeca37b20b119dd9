from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.mesh.demand import (
    MODELS_MAX,
    PAYLOAD_MAX_BYTES,
    REQUESTS_MAX,
    SLOW_HALF_LIFE_S,
    Counters,
    Demand,
    DemandCounter,
    DemandError,
    decode,
    encode,
    rates,
    total,
)

HOUR_S = 3600
counts = st.floats(min_value=0, max_value=1e5)
counters = st.builds(Counters, counts, counts, counts, counts)
tables = st.dictionaries(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
    counters,
    max_size=MODELS_MAX,
)
entries = st.lists(st.tuples(tables.map(encode), st.floats(0, 1e6)), max_size=6)


def test_two_requests_a_second_for_an_hour_cost_few_messages_and_silence_costs_none() -> None:
    rng = random.Random(7)
    counter, now, messages, requests, wire_bytes = DemandCounter(), 0.0, 0, 0, 0
    heard: tuple[bytes, float] | None = None
    worst = 0.0
    while now < HOUR_S:
        now += rng.expovariate(2.0)
        requests += 1
        counter.count("m", 1, rng.uniform(50, 500), now=now)
        payload = counter.due(now)
        if payload is not None:
            messages += 1
            wire_bytes += len(payload)
            heard = (payload, now)
        assert heard is not None
        peers = decode(heard[0])["m"].after(now - heard[1], SLOW_HALF_LIFE_S)
        mine = counter.counters(now)["m"]
        for here, there in ((mine.fast, peers.fast), (mine.slow, peers.slow)):
            worst = max(worst, abs(here - there) / max(1.0, there))
    print(f"{requests} requests: {messages} messages, {wire_bytes} bytes")
    assert messages < 300
    assert worst <= 0.5
    silent = sum(counter.due(now + second) is not None for second in range(HOUR_S))
    assert silent == 0
    assert heard is not None
    steady = total([(heard[0], now - heard[1])])["m"]
    assert steady.burst == pytest.approx(120, rel=0.5)


def test_the_rate_is_what_comes_in() -> None:
    counter = DemandCounter()
    for second in range(8 * HOUR_S):
        counter.count("m", 1, 100, misses=second % 2, now=float(second))
    demand = total([(encode(counter.counters(8 * HOUR_S)), 0.0)])["m"]
    assert demand.burst == pytest.approx(60, rel=0.02)
    assert demand.steady == pytest.approx(60, rel=0.02)
    assert demand.misses == pytest.approx(30, rel=0.02)
    assert demand.tokens == pytest.approx(6000, rel=0.02)


def test_one_request_shows_at_once_and_is_forgotten_slowly() -> None:
    counter = DemandCounter()
    counter.count("m", now=5.0)
    payload = counter.due(5.0)
    assert payload is not None
    assert total([(payload, 0.0)])["m"].rate == pytest.approx(60 * math.log(2) / 60)
    assert total([(payload, 600.0)])["m"].rate == pytest.approx(
        60 * math.log(2) / 1800 * 2 ** (-1 / 3)
    )


def test_two_gateways_add_up() -> None:
    one, two = DemandCounter(), DemandCounter()
    for _ in range(100):
        one.count("m", now=1.0)
        two.count("m", now=77.0)
    both = total([(encode(one.counters(1.0)), 0.0), (encode(two.counters(77.0)), 0.0)])
    alone = total([(encode(one.counters(1.0)), 0.0)])
    assert both["m"].steady == pytest.approx(2 * alone["m"].steady)


@given(entries, st.randoms())
def test_order_does_not_matter(origins: list[tuple[bytes, float]], rng: random.Random) -> None:
    shuffled = list(origins)
    rng.shuffle(shuffled)
    assert total(shuffled) == total(origins)


@given(entries, st.floats(0, 1e6))
def test_nothing_grows_by_waiting(origins: list[tuple[bytes, float]], wait_s: float) -> None:
    before = total(origins)
    after = total([(payload, age_s + wait_s) for payload, age_s in origins])
    for model, demand in before.items():
        assert after[model].rate <= demand.rate
        assert after[model].tokens <= demand.tokens


@given(tables)
def test_what_is_written_is_read_again(table: dict[str, Counters]) -> None:
    again = decode(encode(table))
    assert again.keys() == table.keys()
    for model, one in again.items():
        assert (one.fast, one.slow) == (table[model].fast, table[model].slow)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_bounded(data: bytes) -> None:
    try:
        read = decode(data)
    except DemandError:
        assert total([(data, 0.0)]) == {}
    else:
        assert all(0 <= one.slow <= REQUESTS_MAX for one in read.values())


@given(tables.filter(bool), st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_is_never_believed_beyond_its_bounds(
    table: dict[str, Counters], at: int, value: int
) -> None:
    data = bytearray(encode(table))
    data[at % len(data)] = value
    for demand in total([(bytes(data), 0.0)]).values():
        assert math.isfinite(demand.rate)
        assert 0 <= demand.rate <= REQUESTS_MAX
        assert math.isfinite(demand.tokens)


@pytest.mark.parametrize(
    "value",
    [
        (1, {"m": (-1.0, 0.0, 0.0, 0.0)}),
        (1, {"m": (math.nan, 0.0, 0.0, 0.0)}),
        (1, {"m": (0.0, math.inf, 0.0, 0.0)}),
        (1, {"m": (1.0, 1.0)}),
        (1, {"m": ("1", 1.0, 1.0, 1.0)}),
        (1, {"": (1.0, 1.0, 1.0, 1.0)}),
        (1, {"a\nb": (1.0, 1.0, 1.0, 1.0)}),
        (1, {"x" * 129: (1.0, 1.0, 1.0, 1.0)}),
        (1, {f"m{i}": (1.0, 1.0, 1.0, 1.0) for i in range(MODELS_MAX + 1)}),
        (2, {}),
        {},
        [],
        None,
    ],
)
def test_what_is_no_demand_is_refused(value: object) -> None:
    with pytest.raises(DemandError):
        decode(msgspec.msgpack.encode(value))


def test_a_forged_counter_is_cut_to_its_bound() -> None:
    forged = msgspec.msgpack.encode((1, {"m": (1e300, 1e300, 1e300, 1e300)}))
    assert decode(forged)["m"].slow == REQUESTS_MAX
    assert math.isfinite(total([(forged, 0.0)])["m"].rate)


def test_made_up_names_push_out_each_other_and_not_what_is_in_demand() -> None:
    counter = DemandCounter()
    for _ in range(50):
        counter.count("real", now=0.0)
    for i in range(500):
        counter.count(f"made-up-{i}", now=1.0)
    kept = counter.counters(1.0)
    assert len(kept) == MODELS_MAX
    assert kept["real"].slow > 40


def test_the_longest_payload_is_within_its_bound() -> None:
    names = {f"{i:0128}": Counters(1e5, 1e5, 1e5, 1e5) for i in range(MODELS_MAX)}
    data = encode(names)
    assert len(data) <= PAYLOAD_MAX_BYTES
    assert decode(data)
    short = encode({f"model-{i:02}": Counters(1e5, 1e5, 1e5, 1e5) for i in range(MODELS_MAX)})
    assert len(decode(short)) == MODELS_MAX


@pytest.mark.parametrize("name", ["", "x" * 129, "a\0b", "\ud800"])
def test_a_name_that_is_none_is_not_counted(name: str) -> None:
    counter = DemandCounter()
    counter.count(name, now=0.0)
    assert counter.counters(0.0) == {}


def test_time_that_runs_backwards_changes_nothing() -> None:
    counter = DemandCounter()
    counter.count("m", now=100.0)
    assert counter.counters(50.0) == counter.counters(100.0)
    payload = encode(counter.counters(100.0))
    assert total([(payload, -1e9)]) == total([(payload, 0.0)])


def test_rates_are_the_higher_of_burst_and_steady() -> None:
    assert rates({"m": Demand(burst=3, steady=2), "n": Demand(burst=1, steady=2)}) == {
        "m": 3,
        "n": 2,
    }
