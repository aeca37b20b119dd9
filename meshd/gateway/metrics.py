"""What Prometheus may ask of one gateway. Labels are bounded by the routing table."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

UNKNOWN_MODEL = "unknown"
NO_MODEL = "none"

# From a cached one-token answer to a long prompt on a CPU, in seconds.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)


class GatewayMetrics:
    """One registry for one gateway, so that tests may have several in a process."""

    def __init__(self, *, process: bool = True) -> None:
        self.registry = registry = CollectorRegistry()
        if process:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
        self.requests = Counter(
            "meshd_gateway_requests",
            "Requests answered; code 499 is a client that left before the answer's end.",
            ("model", "endpoint", "code"),
            registry=registry,
        )
        self.in_flight = Gauge(
            "meshd_gateway_requests_in_flight",
            "Requests at an engine now.",
            ("model",),
            registry=registry,
        )
        self.first_byte_s = Histogram(
            "meshd_gateway_time_to_first_byte_seconds",
            "From the request's head to the answer's first byte.",
            ("model", "endpoint"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.duration_s = Histogram(
            "meshd_gateway_request_duration_seconds",
            "From the request's head to the answer's end.",
            ("model", "endpoint"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.upstream_errors = Counter(
            "meshd_gateway_upstream_errors",
            "Engines that failed a request, by how; retried ones included.",
            ("model", "kind"),
            registry=registry,
        )
        self.suspects = Gauge(
            "meshd_gateway_suspect_targets",
            "Engines that failed and have not yet answered a probe.",
            registry=registry,
        )
        self.table_generation = Gauge(
            "meshd_gateway_table_generation",
            "Generation of the routing table in use.",
            registry=registry,
        )
        self.table_age_s = Gauge(
            "meshd_gateway_table_age_seconds",
            "Since the routing table in use was written; NaN without one.",
            registry=registry,
        )
        self.table_valid = Gauge(
            "meshd_gateway_table_valid",
            "1 when the file on disk is the table in use, 0 when the last good one is kept.",
            registry=registry,
        )
        self.table_errors = Counter(
            "meshd_gateway_table_errors",
            "Routing tables that could not be used.",
            registry=registry,
        )

    def follow_table_age(self, written_s: Callable[[], float | None]) -> None:
        """:param written_s: Unix time when the table in use was written, None without one."""

        def age_s() -> float:
            written = written_s()
            return float("nan") if written is None else max(0.0, time.time() - written)

        self.table_age_s.set_function(age_s)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type, in the format that the scraper accepts."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type
