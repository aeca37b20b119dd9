"""What Prometheus may ask of one guard. Labels are bounded: its peers, and the protocol's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from meshd.gateway.fast_count import Count, FastCounts
from meshd.gateway.histogram import FastHistogram, Observations
from meshd.guard.commands import RULES, Rule
from meshd.guard.status import GuardStatus, PeerStatus

_CALL_S = (
    *(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    *(1.0, 3.0, 10.0, 30.0, 100.0),
)

_Values = tuple[str, str, Callable[[PeerStatus], float]]

_COUNTERS: tuple[_Values, ...] = (
    ("silences", "Connections given up for a call or a guard that fell silent.",
     lambda peer: peer.silences),
    ("losses", "Connections that the other end closed while they were in use.",
     lambda peer: peer.losses),
)  # fmt: skip
_GAUGES: tuple[_Values, ...] = (
    ("reached", "Whether the peer can be used.", lambda peer: peer.reached),
    ("connections", "Open connections that carry RPC.", lambda peer: peer.connections),
    ("oldest_call_seconds", "Age of the oldest call without an answer.",
     lambda peer: peer.oldest_call_s),
    ("allowance_seconds", "A call that is silent for longer is taken for lost.",
     lambda peer: peer.allowance_s),
    ("rtt_seconds", "Round trip between the guards.", lambda peer: peer.rtt_ms / 1000),
)  # fmt: skip


class GuardMetrics:
    """:param status: as of now, for what is read at a scrape."""

    def __init__(self, status: Callable[[], GuardStatus]) -> None:
        self._registry = CollectorRegistry()
        self._seconds = FastHistogram(
            "meshd_guard_call_seconds",
            "From a call's last byte to the last of its answer.",
            ("peer", "call"),
            _CALL_S,
            self._registry,
        )
        self._requests = FastCounts(
            CounterMetricFamily,
            "meshd_guard_requests",
            "Requests that passed, with an answer or without.",
            ("peer", "call"),
            self._registry,
        )
        self._bytes = FastCounts(
            CounterMetricFamily,
            "meshd_guard_bytes",
            "Payload that passed, by where to.",
            ("peer", "call", "to"),
            self._registry,
        )
        self._registry.register(_Scraped(status))

    def on_call(self, peer: str) -> Callable[[Rule, float, int, int], None]:
        """For a conversation with this peer."""
        # Found by number: this runs for every frame, between two nodes that wait for it.
        known: list[_Call | None] = [None] * len(RULES)

        def heard(rule: Rule, seconds: float, sent: int, answered: int) -> None:
            call = known[rule.command] or self._make(known, peer, rule)
            call.requests.value += 1
            call.sent.value += sent
            if call.seconds is not None and call.answered is not None:
                call.answered.value += answered
                call.seconds.observe(seconds)

        return heard

    def _make(self, known: list[_Call | None], peer: str, rule: Rule) -> _Call:
        label, answered = rule.label, rule.answer is not None
        call = known[rule.command] = _Call(
            self._requests.labels(peer, label),
            self._bytes.labels(peer, label, "member"),
            self._bytes.labels(peer, label, "host") if answered else None,
            self._seconds.labels(peer, label) if answered else None,
        )
        return call

    def page(self, accept: str) -> tuple[bytes, str]:
        """The text for a scraper that accepts so, and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type


class _Call(NamedTuple):
    """The counters of one kind of call; the last two where it has an answer."""

    requests: Count
    sent: Count
    answered: Count | None
    seconds: Observations | None


class _Scraped(Collector):
    def __init__(self, status: Callable[[], GuardStatus]) -> None:
        self._status = status

    def describe(self) -> Iterator[Metric]:
        yield from ()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        for name, about, value in _COUNTERS:
            counter = CounterMetricFamily(f"meshd_guard_{name}", about, labels=("peer",))
            for peer in status.peers:
                counter.add_metric((peer.node,), value(peer))
            yield counter
        for name, about, value in _GAUGES:
            gauge = GaugeMetricFamily(f"meshd_guard_{name}", about, labels=("peer",))
            for peer in status.peers:
                gauge.add_metric((peer.node,), value(peer))
            yield gauge
        yield CounterMetricFamily(
            "meshd_guard_refused", "Strangers and rude probes sent away.", value=status.refused
        )
