"""Traces that go to a collector over OTLP/HTTP. Imported only where they are wanted.

The library's own thread batches and sends. What it cannot take is dropped and counted, and an
outage of the collector is one line in the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ReadableSpan,
    Span,
    SpanLimits,
    SpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span as AnySpan
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import meshd
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.telemetry import Collector, Fact, Reported, Stage
from meshd.gateway.tokens import Timings

MAX_WAITING_SPANS = 2048
# Encoding one span takes 50 µs under the interpreter's lock: small batches hold up no stream.
_BATCH = 64
_DELAY_MS = 1000
_EXPORT_S = 5.0
_LAST_EXPORT_S = 1.0
_NEVER_S = float("inf")
_LONGEST_VALUE = 256

ATTRIBUTES: Mapping[str, str] = {
    "operation": "gen_ai.operation.name",
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "code": "http.response.status_code",
    "path": "http.route",
    "failure": "error.type",
}

_OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
}

_log = structlog.get_logger("meshd.gateway")
_propagator = TraceContextTextMapPropagator()


class OtlpTracing:
    """`telemetry.Tracing` over OpenTelemetry's SDK."""

    def __init__(self, collector: Collector, metrics: GatewayMetrics) -> None:
        """:raises ValueError: the URL is none."""
        parts = urlsplit(collector.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"gateway.otlp is no http URL: {collector.url[:_LONGEST_VALUE]!r}")
        # It speaks of each failure; we speak of the first one.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = _Exporter(collector.url, parts.hostname, metrics)
        resource = Resource(
            {
                "service.name": "meshd-gateway",
                "service.version": meshd.__version__,
                "service.instance.id": collector.node,
                **({"service.namespace": collector.mesh} if collector.mesh else {}),
            }
        )
        self._provider = TracerProvider(
            resource=resource,
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_attributes=32, max_attribute_length=_LONGEST_VALUE),
        )
        self._provider.add_span_processor(_Bounded(self._exporter))
        self._tracer = self._provider.get_tracer("meshd.gateway", meshd.__version__)

    def request(self, headers: Mapping[str, str], path: str, request_id: str) -> Stage:
        carrier = {
            name.lower(): headers[name] for name in ("Traceparent", "Tracestate") if name in headers
        }
        operation = _OPERATIONS.get(path, "other")
        span = self._tracer.start_span(
            operation,
            context=_propagator.extract(carrier, context=Context()),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "llama.cpp",
                "http.route": path,
                "meshd.request_id": request_id,
            },
        )
        return _Stage(self._tracer, span, operation)

    def close(self) -> None:
        self._exporter.hurry()
        self._provider.shutdown()


class _Stage:
    """A span and what comes under it. :ivar _operation: set on the request's own span only."""

    __slots__ = ("_operation", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: AnySpan, operation: str = "") -> None:
        self._tracer = tracer
        self._span = span
        self._operation = operation

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            # Its text may have come from a client or an engine.
            refusal = getattr(error, "error", None)
            named = getattr(error, "kind", "") or getattr(refusal, "code", "")
            self.failed(str(named or kind.__name__))
        self._span.end()

    def stage(self, name: str, **facts: Fact) -> Stage:
        span = self._tracer.start_span(
            name,
            context=set_span_in_context(self._span, Context()),
            kind=SpanKind.CLIENT if name == "engine" else SpanKind.INTERNAL,
            attributes=_attributes(facts),
        )
        return _Stage(self._tracer, span)

    def note(self, **facts: Fact) -> None:
        self._span.set_attributes(_attributes(facts))
        if self._operation and facts.get("model"):
            self._span.update_name(f"{self._operation} {facts['model']}"[:_LONGEST_VALUE])

    def failed(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)

    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, context=set_span_in_context(self._span, Context()))
        return {name.title(): value for name, value in carrier.items()}

    def measured(self, timings: Timings | None) -> None:
        if timings is not None and self._span.is_recording():
            self._span.set_attribute(ATTRIBUTES["cached_tokens"], timings.cached)
            self.reported(engine_stages(timings, time.time_ns(), _start_ns(self._span)))

    def reported(self, stages: Iterable[Reported]) -> None:
        if not self._span.is_recording():
            return
        context = set_span_in_context(self._span, Context())
        for stage in stages:
            span = self._tracer.start_span(
                stage.name,
                context=context,
                attributes=_attributes(stage.facts),
                start_time=stage.start_ns,
            )
            span.end(stage.end_ns)


def engine_stages(timings: Timings, end_ns: int, earliest_ns: int = 0) -> tuple[Reported, Reported]:
    """Prefill and decode as an engine measured them: the one after the other, up to its last event.

    :param end_ns: when that event came, Unix time. :param earliest_ns: when it was asked.
    """
    decode_ns = max(earliest_ns, end_ns - int(timings.predicted_ms * 1e6))
    prefill_ns = max(earliest_ns, decode_ns - int(timings.prompt_ms * 1e6))
    return (Reported("prefill", prefill_ns, decode_ns), Reported("decode", decode_ns, end_ns))


def _start_ns(span: AnySpan) -> int:
    return (span.start_time or 0) if isinstance(span, ReadableSpan) else 0


def _attributes(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    return {ATTRIBUTES.get(name) or f"meshd.{name}": value for name, value in facts.items()}


class _Exporter(SpanExporter):
    """Counts what was sent and what was not, and says once that a collector is away."""

    def __init__(self, url: str, host: str, metrics: GatewayMetrics) -> None:
        self._exporter = OTLPSpanExporter(url, timeout=_EXPORT_S)
        self._host = host
        self._metrics = metrics
        self._lock = threading.Lock()
        self._pending = 0  # ended, and neither sent nor dropped
        self._away = False
        self._until_s = _NEVER_S

    def hurry(self) -> None:
        """Take no more spans, and begin no export that is more than a moment from now."""
        self._until_s = time.monotonic() + _LAST_EXPORT_S

    def admit(self) -> bool:
        """Whether one more span may wait; it counts as waiting then, else as dropped."""
        with self._lock:
            if self._pending < MAX_WAITING_SPANS and self._until_s == _NEVER_S:
                self._pending += 1
                return True
        self._metrics.spans_dropped.inc()
        return False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            if time.monotonic() < self._until_s:
                result = self._exporter.export(spans)
        finally:
            with self._lock:
                self._pending -= len(spans)
            taken = result is SpanExportResult.SUCCESS
            counter = self._metrics.spans_exported if taken else self._metrics.spans_dropped
            counter.inc(len(spans))
            self._say(taken)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True

    def _say(self, taken: bool) -> None:
        if taken == self._away:
            self._away = not taken
            if taken:
                _log.info("the collector of traces takes them again", collector=self._host)
            else:
                _log.warning(
                    "the collector of traces does not take them; they are dropped",
                    collector=self._host,
                )


class _Bounded(SpanProcessor):
    """Hands on what may wait, and drops the rest here, where it can be counted."""

    def __init__(self, exporter: _Exporter) -> None:
        self._exporter = exporter
        self._batch = BatchSpanProcessor(
            exporter,
            max_queue_size=MAX_WAITING_SPANS,
            schedule_delay_millis=_DELAY_MS,
            max_export_batch_size=_BATCH,
        )

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        return None

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        if context is None or not context.trace_flags.sampled:
            return
        if self._exporter.admit():
            self._batch.on_end(span)

    def shutdown(self) -> None:
        self._batch.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._batch.force_flush(timeout_millis)
