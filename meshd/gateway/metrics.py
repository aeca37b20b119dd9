"""What Prometheus may ask of one gateway. Labels are bounded by the routing table and the keys.

What the field has a name for has that name, as in vLLM, llm-d and GPUStack: a dashboard for those
needs another prefix only. What is said of requests is said by the gateway that a client asked, so
that the sum over all nodes is that of the mesh; `meshd_gateway_requests_total` alone counts what
came from other gateways, too. ``meshd_gateway_*`` is this process' own state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from meshd.gateway.fast_count import Count, FastCounts
from meshd.gateway.histogram import FastHistogram, Observations
from meshd.gateway.tokens import NO_TOKENS, Tokens

UNKNOWN_MODEL = "unknown"
NO_MODEL = "none"
OTHER = "other"
"""Stands for those that came when there were too many to tell apart."""

MAX_MODELS = 512
MAX_KEYS = 256

# From a GPU's cached prompt to a long one on a CPU.
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
# 1,000 tokens/s to one in five seconds.
_PER_TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0),
)
_LATENCY_S = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0),
    *(60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
_QUEUE_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)


class Resumption(StrEnum):
    """How it went on with a stream whose engine was lost after the first token."""

    RESUMED = "resumed"
    NO_REPLICA = "no_replica"
    NOT_RESUMABLE = "not_resumable"
    FAILED = "failed"


class Answered(msgspec.Struct, frozen=True):
    """One request at its end.

    :ivar endpoint: the path as the gateway lists it.
    :ivar code: HTTP's, 499 when the client left before the answer's end.
    :ivar duration_s: from the request's head to the answer's end.
    :ivar inference: it asked a model for something.
    :ivar hop: another gateway sent it on, and counts it.
    :ivar first_token_s: from the request's head to the first event with data; None where the answer
        came as a whole, or did not come.
    :ivar queued_s: how long it waited for a model or a slot.
    :ivar quality: ``exact`` or ``shard``, "" where no engine answered.
    :ivar key: name of the API key, "" without one.
    """

    model: str
    endpoint: str
    code: int
    duration_s: float
    inference: bool = True
    hop: bool = False
    first_token_s: float | None = None
    queued_s: float = 0.0
    tokens: Tokens = NO_TOKENS
    key: str = ""
    quality: str = ""


@dataclass(slots=True)
class _Model:
    """Children by model alone: `labels` takes a lock and a lookup a call."""

    first_token_s: Observations
    per_token_s: Observations
    queued_s: Observations
    prompt_tokens: Count
    generation_tokens: Count
    running_here: Count
    running_there: Count
    waiting: Gauge


@dataclass(slots=True)
class _Key:
    requests: Count
    tokens: Count


class GatewayMetrics:
    """One registry for one gateway, so that tests may have several in a process."""

    def __init__(self, *, process: bool = True) -> None:
        self.registry = registry = CollectorRegistry()
        if process:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)

        def histogram(
            name: str, says: str, labels: tuple[str, ...], buckets: tuple[float, ...]
        ) -> FastHistogram:
            return FastHistogram(name, says, labels, buckets, registry)

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(name, says, labels, registry=registry)

        def gauge(name: str, says: str, *labels: str) -> Gauge:
            return Gauge(name, says, labels, registry=registry)

        def fast_counter(name: str, says: str, *labels: str) -> FastCounts:
            return FastCounts(CounterMetricFamily, name, says, labels, registry)

        self._first_token_s = histogram(
            "meshd_time_to_first_token_seconds",
            "From a streamed request's head to its first event with data.",
            ("model",),
            _FIRST_TOKEN_S,
        )
        self._per_token_s = histogram(
            "meshd_time_per_output_token_seconds",
            "Mean of one stream: the time after its first token by the tokens that it brought.",
            ("model",),
            _PER_TOKEN_S,
        )
        self._duration_s = histogram(
            "meshd_e2e_request_latency_seconds",
            "From the request's head to the answer's end.",
            ("model", "endpoint"),
            _LATENCY_S,
        )
        self._queued_s = histogram(
            "meshd_request_queue_time_seconds",
            "How long requests waited for a model or a slot.",
            ("model",),
            _QUEUE_S,
        )
        self._running = FastCounts(
            GaugeMetricFamily,
            "meshd_num_requests_running",
            "Requests at an engine now: of this node (here), or of another (peer).",
            ("model", "place"),
            registry,
        )
        self._waiting = gauge(
            "meshd_num_requests_waiting",
            "Requests that wait in this gateway for a model or a slot.",
            "model",
        )
        self._prompt_tokens = fast_counter(
            "meshd_prompt_tokens", "Tokens in prompts, as engines counted them.", "model"
        )
        self._generation_tokens = fast_counter(
            "meshd_generation_tokens", "Tokens in answers, as engines counted them.", "model"
        )
        self._qualities = fast_counter(
            "meshd_answers",
            "Requests that an engine answered: of the whole model (exact), or of a shard of it.",
            *("model", "quality"),
        )
        self._resumed = counter(
            "meshd_streams_resumed",
            "Streams whose engine was lost after the first token, by what became of them.",
            "outcome",
        )
        self._upstream_errors = counter(
            "meshd_upstream_errors",
            "Engines that failed a request, by how; retried ones included.",
            *("model", "kind"),
        )
        self._key_requests = fast_counter(
            "meshd_key_requests", "Requests that came with an API key, by its name.", "key"
        )
        self._key_tokens = fast_counter(
            "meshd_key_tokens", "Tokens in prompts and answers by API key.", "key"
        )
        self._requests = fast_counter(
            "meshd_gateway_requests",
            "Requests answered, those of other gateways included; code 499 is a client that left "
            "before the answer's end.",
            *("model", "endpoint", "code"),
        )
        self.suspects = gauge(
            "meshd_gateway_suspect_targets",
            "Engines that failed and have not yet answered a probe.",
        )
        self.table_generation = gauge(
            "meshd_gateway_table_generation", "Generation of the routing table in use."
        )
        self.table_age_s = gauge(
            "meshd_gateway_table_age_seconds",
            "Since the routing table in use was written; NaN without one.",
        )
        self.table_valid = gauge(
            "meshd_gateway_table_valid",
            "1 when the file on disk is the table in use, 0 when the last good one is kept.",
        )
        self.table_errors = counter(
            "meshd_gateway_table_errors", "Routing tables that could not be used."
        )
        self.spans_exported = counter(
            "meshd_gateway_spans_exported", "Spans that the collector of traces took."
        )
        self.spans_dropped = counter(
            "meshd_gateway_spans_dropped", "Spans that it did not take, or that came too fast."
        )
        self._names: set[str] = set()
        self._models: dict[str, _Model] = {}
        self._keys: dict[str, _Key] = {}
        self._codes: dict[tuple[str, str, int], Count] = {}
        self._answers: dict[tuple[str, str], Count] = {}
        self._durations: dict[tuple[str, str], Observations] = {}
        for outcome in Resumption:
            self._resumed.labels(outcome.value)  # 0 is news, too: rates need a first value

    def running(self, model: str, *, here: bool) -> Count:
        """To count a request with while an engine has it, as a context.

        :param here: one of this node.
        """
        children = self._model(model)
        return children.running_here if here else children.running_there

    def waiting(self, model: str) -> Gauge:
        """To count a request with while it waits for a model or a slot."""
        return self._model(model).waiting

    def upstream_failed(self, model: str, kind: str) -> None:
        """:param kind: one of a fixed set, as `engine_call` names them."""
        self._upstream_errors.labels(self._bounded(model), kind).inc()

    def resumed(self, outcome: Resumption) -> None:
        self._resumed.labels(outcome.value).inc()

    def answered(self, one: Answered) -> None:
        """Count one request at its end. Takes some microseconds."""
        name = self._bounded(one.model)
        by_code = (name, one.endpoint, one.code)
        requests = self._codes.get(by_code)
        if requests is None:
            requests = self._codes[by_code] = self._requests.labels(
                name, one.endpoint, str(one.code)
            )
        requests.inc()
        if not one.inference or one.hop:
            return
        by_endpoint = (name, one.endpoint)
        duration_s = self._durations.get(by_endpoint)
        if duration_s is None:
            duration_s = self._durations[by_endpoint] = self._duration_s.labels(*by_endpoint)
        duration_s.observe(one.duration_s)
        if one.quality:
            by_quality = (name, one.quality)
            answers = self._answers.get(by_quality)
            if answers is None:
                answers = self._answers[by_quality] = self._qualities.labels(*by_quality)
            answers.inc()
        tokens = one.tokens
        model = self._model(name)
        model.queued_s.observe(one.queued_s)
        model.prompt_tokens.inc(tokens.prompt)
        model.generation_tokens.inc(tokens.completion)
        if one.first_token_s is not None:
            model.first_token_s.observe(one.first_token_s)
            # https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/: after the first.
            if tokens.completion > 1:
                rest_s = max(0.0, one.duration_s - one.first_token_s)
                model.per_token_s.observe(rest_s / (tokens.completion - 1))
        if one.key:
            key = self._key(one.key)
            key.requests.inc()
            key.tokens.inc(tokens.prompt + tokens.completion)

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

    def _bounded(self, model: str) -> str:
        """The label's value; the model counts as known from here on."""
        if model in self._names:
            return model
        if len(self._names) >= MAX_MODELS:
            return OTHER
        self._names.add(model)
        return model

    def _model(self, model: str) -> _Model:
        children = self._models.get(model)
        if children is not None:
            return children
        if model != (model := self._bounded(model)):
            return self._model(model)
        children = self._models[model] = _Model(
            self._first_token_s.labels(model),
            self._per_token_s.labels(model),
            self._queued_s.labels(model),
            self._prompt_tokens.labels(model),
            self._generation_tokens.labels(model),
            self._running.labels(model, "here"),
            self._running.labels(model, "peer"),
            self._waiting.labels(model),
        )
        return children

    def _key(self, key: str) -> _Key:
        children = self._keys.get(key)
        if children is not None:
            return children
        if len(self._keys) >= MAX_KEYS and key != OTHER:
            return self._key(OTHER)
        children = self._keys[key] = _Key(
            self._key_requests.labels(key), self._key_tokens.labels(key)
        )
        return children
