"""Counters and gauges that cost a request a tenth of a microsecond.

`prometheus_client`'s take a lock and two checks at each step, about a microsecond; a gateway's
event loop needs no lock. What a scrape gets is the library's own family.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry


class Count:
    """With one set of label values. As a context it counts what lasts just now."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """:param amount: never negative where it is a counter's."""
        self.value += amount

    def __enter__(self) -> None:
        self.value += 1

    def __exit__(self, *_: object) -> None:
        self.value -= 1


class FastCounts(Collector):
    """For one thread. Every combination of label values is made once, by `labels`, and kept."""

    def __init__(
        self,
        family: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        documentation: str,
        labels: Iterable[str],
        registry: CollectorRegistry,
    ) -> None:
        self._kind = family
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """:raises ValueError: not as many values as there are labels."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {self._labels}, not {len(values)}")
        return self._children.setdefault(values, Count())

    def describe(self) -> Iterator[Metric]:
        """What it will collect, so that a registry finds names that are there twice."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for values, child in self._children.items():
            family.add_metric(values, child.value)
        yield family

    def _family(self) -> CounterMetricFamily | GaugeMetricFamily:
        return self._kind(self._name, self._documentation, labels=self._labels)
