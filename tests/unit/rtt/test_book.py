"""The whole of it on a virtual clock, with a network that is a function."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.rtt import schedule
from meshd.rtt.book import Probe, RttBook
from meshd.rtt.publish import revise
from meshd.rtt.reading import Reading

BOTH = frozenset({4, 6})
Network = Callable[[Probe, float], float | None]


class World:
    """Sends what the book wants when it wants it. :ivar sent: (when, what) of every packet."""

    def __init__(self, book: RttBook, network: Network) -> None:
        self.book = book
        self.network = network
        self.now_s = 0.0
        self.sent: list[tuple[float, Probe]] = []
        self._coming: list[tuple[float, int, Probe, float | None]] = []

    def run(self, until_s: float, versions: frozenset[int] = BOTH) -> None:
        while True:
            due_s = self.book.due_s(versions)
            times = [at for at, *_ in self._coming[:1]] + ([] if due_s is None else [due_s])
            next_s = min(times, default=until_s)
            if next_s >= until_s:
                self.now_s = until_s
                return
            self.now_s = max(self.now_s, next_s)
            while self._coming and self._coming[0][0] <= self.now_s:
                _, _, probe, rtt_ms = heapq.heappop(self._coming)
                if rtt_ms is None:
                    self.book.lost(probe, self.now_s)
                else:
                    self.book.answered(probe, rtt_ms, self.now_s)
            probe_now = self.book.next_probe(self.now_s, versions)
            if probe_now is not None:
                self.sent.append((self.now_s, probe_now))
                rtt_ms = self.network(probe_now, self.now_s)
                back_s = self.now_s + (3.0 if rtt_ms is None else rtt_ms / 1000)
                heapq.heappush(self._coming, (back_s, len(self.sent), probe_now, rtt_ms))

    def packets(self, from_s: float, to_s: float) -> int:
        return sum(from_s <= at < to_s for at, _ in self.sent)


def named(count: int) -> dict[str, tuple[str, ...]]:
    return {f"n{i:04}": (f"10.{i // 250}.{i % 250}.1:9338",) for i in range(count)}


def world(
    peers: Mapping[str, tuple[str, ...]], network: Network, needed: frozenset[str] = frozenset()
) -> World:
    book = RttBook("me")
    book.follow(peers, needed, 0.0)
    return World(book, network)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    needed_count=st.integers(0, 1000),
    loss=st.floats(0.0, 1.0),
)
def test_never_more_than_a_packet_a_second_among_a_thousand_and_needed_ones_get_theirs(
    seed: int, needed_count: int, loss: float
) -> None:
    rng = random.Random(seed)
    peers = named(1000)
    needed = frozenset(rng.sample(sorted(peers), needed_count))

    def network(probe: Probe, at_s: float) -> float | None:
        return None if rng.random() < loss else rng.uniform(0.1, 300.0)

    one = world(peers, network, needed)
    one.run(1100.0)
    times = [at for at, _ in one.sent]
    assert all(after >= before + 1.0 for before, after in pairwise(times))
    asked = [probe.peer for _, probe in one.sent]
    # Those who were asked at least once: all needed, as long as a second each has passed.
    assert needed <= set(asked)
    if needed:
        assert set(asked[: min(3, len(needed))]) <= needed


def test_an_idle_mesh_is_quiet() -> None:
    peers = named(50)
    one = world(peers, lambda probe, _: 1.0 + int(probe.ip.split(".")[2]))
    one.run(2 * 3600.0)
    # 2 + log2(50), and the nearest: each at most once in five minutes once it is known
    assert one.packets(1800.0, 3600.0) <= 12 * 7
    assert one.packets(1800.0, 3600.0) >= 8


def test_packets_do_not_grow_with_the_mesh_but_by_its_logarithm() -> None:
    def hour(count: int) -> int:
        one = world(named(count), lambda *_: 20.0)
        one.run(3600.0)
        return one.packets(0.0, 3600.0)

    assert hour(1000) <= 2 * hour(50)


def test_windows_rise_soon_after_the_path_does_and_fall_again() -> None:
    def network(probe: Probe, at_s: float) -> float:
        return 60.0 if 7200.0 <= at_s < 10800.0 else 10.0

    one = world(named(1), network, frozenset({"n0000"}))
    for until_s, expected_ms in ((7200.0, 10.0), (7560.0, 60.0), (10800.0, 60.0), (11160.0, 10.0)):
        one.run(until_s)
        window = one.book.windows(one.now_s)["n0000"]
        assert (window.min_ms, window.median_ms, window.p95_ms) == (expected_ms,) * 3


def test_a_peer_that_falls_silent_becomes_unknown_and_comes_back() -> None:
    silent = (3600.0, 9000.0)

    def network(probe: Probe, at_s: float) -> float | None:
        return None if silent[0] <= at_s < silent[1] else 5.0

    one = world(named(1), network)
    one.run(silent[0])
    assert "n0000" in one.book.windows(one.now_s)
    one.run(silent[0] + 360.0)
    assert one.book.windows(one.now_s) == {}
    assert one.book.best_address("n0000") is None
    one.run(silent[1] + 310.0)
    assert one.book.best_address("n0000") == "10.0.0.1:9338"


def test_a_peer_that_vanishes_is_forgotten_and_its_late_answer_too() -> None:
    book = RttBook("me")
    book.follow(named(3), frozenset(), 0.0)
    probe = book.next_probe(0.0, BOTH)
    assert probe is not None
    book.answered(probe, 4.0, 0.1)
    assert set(book.windows(0.2)) == {probe.peer}
    left = {peer: addresses for peer, addresses in named(3).items() if peer != probe.peer}
    book.follow(left, frozenset(), 1.0)
    book.answered(probe, 4.0, 1.1)
    book.lost(probe, 1.2)
    assert book.windows(1.3) == {}
    book.follow({}, frozenset(), 2.0)
    assert book.due_s(BOTH) is None
    assert book.next_probe(3.0, BOTH) is None


def test_the_best_of_several_addresses_is_found_and_given_up_when_it_falls_silent() -> None:
    rtts: dict[str, float | None] = {"10.9.0.1": None, "10.9.0.2": 30.0, "2001:db8::3": 4.0}
    peers = {"a": ("10.9.0.1:1", "10.9.0.2:2", "[2001:db8::3]:3")}
    one = world(peers, lambda probe, _: rtts[probe.ip], frozenset({"a"}))
    one.run(60.0)
    assert one.book.best_address("a") == "[2001:db8::3]:3"
    assert one.book.windows(one.now_s)["a"].median_ms == 4.0
    before = Counter(probe.ip for _, probe in one.sent)
    rtts["2001:db8::3"] = None
    one.run(60.0 + 900.0)
    assert one.book.best_address("a") == "10.9.0.2:2"
    assert Counter(probe.ip for _, probe in one.sent) > before


def test_a_moved_address_starts_anew() -> None:
    one = world({"a": ("10.9.0.1:1",)}, lambda *_: 3.0)
    one.run(30.0)
    assert "a" in one.book.windows(one.now_s)
    one.book.follow({"a": ("10.9.0.2:1",)}, frozenset(), one.now_s)
    assert one.book.windows(one.now_s) == {}
    one.run(700.0)
    assert one.book.best_address("a") == "10.9.0.2:1"


def test_where_pings_may_not_be_sent_none_are() -> None:
    one = world({"a": ("10.9.0.1:1", "[2001:db8::3]:1"), "b": ("10.9.0.2:1",)}, lambda *_: 3.0)
    one.run(100.0, frozenset())
    assert one.sent == []
    one.run(200.0, frozenset({6}))
    assert {probe.ip for _, probe in one.sent} == {"2001:db8::3"}


def test_names_are_probed_once_resolved() -> None:
    book = RttBook("me")
    book.follow({"a": ("box.lan:1", "bad name:1")}, frozenset(), 0.0)
    assert book.names() == ("box.lan",)
    assert book.due_s(BOTH) is None
    book.resolved("box.lan", ["garbage", "0.0.0.0", "10.9.0.1", "10.9.0.1", "10.9.0.2", "10.9.0.3"])
    probe = book.next_probe(1.0, BOTH)
    assert probe == Probe("a", "10.9.0.1")
    book.answered(probe, 2.0, 1.1)
    assert book.best_address("a") == "box.lan:1"
    book.resolved("box.lan", ["10.9.0.9"])
    assert book.windows(1.2) == {}


def reading(rtt_ms: float, min_ms: float | None, segments: int, cookie: int = 1) -> Reading:
    return Reading("10.0.0.1", 9338, cookie, rtt_ms, min_ms, segments)


def test_connections_alone_give_windows_that_rise_and_fall() -> None:
    book = RttBook("me")
    book.follow(named(1), frozenset(), 0.0)
    assert book.connections([reading(50.0, 10.0, 5)], 1.0)
    assert book.windows(1.0)["n0000"].median_ms == 10.0
    assert not book.connections([reading(50.0, 10.0, 5)], 2.0), "nothing moved"
    for turn in range(10):
        assert book.connections([reading(90.0, 70.0, 6 + turn)], 3.0 + turn)
    assert book.windows(13.0)["n0000"].min_ms == 70.0
    for turn in range(10):
        book.connections([reading(90.0, 10.0, 106 + turn)], 14.0 + turn)
    assert book.windows(25.0)["n0000"].p95_ms == 10.0


def test_beside_pings_an_old_minimum_does_not_vote_again() -> None:
    book = RttBook("me")
    book.follow(named(1), frozenset(), 0.0)
    book.connections([reading(10.0, 10.0, 1)], 0.0)
    book.answered(Probe("n0000", "10.0.0.1"), 60.0, 1.0)
    for turn in range(10):
        assert not book.connections([reading(60.0, 10.0, 2 + turn)], 2.0 + turn)
    assert book.connections([reading(60.0, 59.0, 99)], 20.0), "a new minimum is a measurement"
    assert book.windows(20.0)["n0000"].samples == 3


def test_connections_to_others_or_other_ports_are_nobody_s() -> None:
    book = RttBook("me")
    book.follow(named(1), frozenset(), 0.0)
    assert book.ports() == {9338}
    strangers = [
        Reading("10.0.0.2", 9338, 1, 1.0, 1.0, 1),
        Reading("10.0.0.1", 443, 2, 1.0, 1.0, 1),
    ]
    assert not book.connections(strangers, 1.0)
    assert book.windows(1.0) == {}


def changes_told(one: World, hours: int) -> int:
    """How often a node would publish, looking after every quarter of an hour."""
    told = revise((), one.book.steady_windows(one.now_s), ())
    changes = 0
    for _ in range(4 * hours):
        one.run(one.now_s + 900.0)
        again = revise(told, one.book.steady_windows(one.now_s), ())
        changes += again != told
        told = again
    return changes


@pytest.mark.parametrize("jitter_ms", [0.0, 0.3])
def test_a_day_of_ordinary_jitter_says_nothing(jitter_ms: float) -> None:
    rng = random.Random(7)
    one = world(named(50), lambda *_: 10.0 + rng.expovariate(1.0) * jitter_ms)
    one.run(6 * 3600.0)
    assert changes_told(one, 24) == 0


def test_exploring_a_large_mesh_finds_near_peers_and_says_so_once_each() -> None:
    rng = random.Random(11)
    far = {peer: rng.uniform(5.0, 200.0) for peer in named(300)}
    ips = {addresses[0].partition(":")[0]: peer for peer, addresses in named(300).items()}
    one = world(named(300), lambda probe, _: far[ips[probe.ip]])
    one.run(1800.0)
    first = sum(sorted(window.median_ms for window in one.book.windows(1800.0).values())[:4])
    changes = changes_told(one, 100)
    windows = one.book.steady_windows(one.now_s)
    last = sum(sorted(window.median_ms for window in windows.values())[:4])
    assert last < first / 2
    assert changes <= 25
    assert len(windows) <= schedule.others_count(300) + schedule.NEAREST
