"""What is counted of requests, under bounded labels, and that the dashboard shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from meshd.gateway.fast_count import FastCounts
from meshd.gateway.histogram import FastHistogram
from meshd.gateway.metrics import (
    MAX_KEYS,
    MAX_MODELS,
    OTHER,
    Answered,
    GatewayMetrics,
    Resumption,
)
from meshd.gateway.tokens import StreamTokens, Timings, Tokens, costs_of

CHAT = "/v1/chat/completions"
DASHBOARD = Path(__file__).parents[2] / "share/grafana/meshd.json"
# Collected where the gateway is a process of its own.
OF_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def _value(metrics: GatewayMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_streamed_request_is_told_as_clients_saw_it() -> None:
    metrics = GatewayMetrics(process=False)
    one = Answered("m", CHAT, 200, 3.5, first_token_s=0.5, queued_s=0.2, tokens=Tokens(7, 31))
    metrics.answered(one)
    assert _value(metrics, "meshd_time_to_first_token_seconds_sum", model="m") == 0.5
    per_token = _value(metrics, "meshd_time_per_output_token_seconds_sum", model="m")
    assert per_token == pytest.approx(0.1)  # 3 s for the thirty after the first
    latency = "meshd_e2e_request_latency_seconds_sum"
    assert _value(metrics, latency, model="m", endpoint=CHAT) == 3.5
    assert _value(metrics, "meshd_request_queue_time_seconds_sum", model="m") == 0.2
    assert _value(metrics, "meshd_prompt_tokens_total", model="m") == 7
    assert _value(metrics, "meshd_generation_tokens_total", model="m") == 31


def test_what_came_as_a_whole_or_broke_off_at_once_has_no_time_per_token() -> None:
    metrics = GatewayMetrics(process=False)
    metrics.answered(Answered("m", CHAT, 200, 3.5, tokens=Tokens(7, 31)))
    metrics.answered(Answered("m", CHAT, 502, 1.0, first_token_s=0.5, tokens=Tokens(0, 1)))
    assert _value(metrics, "meshd_time_to_first_token_seconds_count", model="m") == 1
    assert _value(metrics, "meshd_time_per_output_token_seconds_count", model="m") == 0


def test_a_request_of_another_gateway_is_counted_there() -> None:
    metrics = GatewayMetrics(process=False)
    metrics.answered(Answered("m", CHAT, 200, 1.0, hop=True, tokens=Tokens(7, 31), key="k"))
    answers = "meshd_gateway_requests_total"
    assert _value(metrics, answers, model="m", endpoint=CHAT, code="200") == 1
    assert not _value(metrics, "meshd_prompt_tokens_total", model="m")
    assert not _value(metrics, "meshd_key_requests_total", key="k")


def test_answers_are_counted_by_their_quality_where_they_were_asked_for() -> None:
    metrics = GatewayMetrics(process=False)
    for quality in ("exact", "shard", "shard", ""):
        metrics.answered(Answered("m", CHAT, 200, 1.0, quality=quality))
        metrics.answered(Answered("m", CHAT, 200, 1.0, hop=True, quality=quality))
    (family,) = (one for one in metrics.registry.collect() if one.name == "meshd_answers")
    counts = {one.labels["quality"]: one.value for one in family.samples}
    assert counts == {"exact": 1, "shard": 2}


def test_what_is_no_inference_has_a_count_only() -> None:
    metrics = GatewayMetrics(process=False)
    metrics.answered(Answered("none", "/healthz", 200, 0.1, inference=False))
    names = {one.name for one in metrics.registry.collect() if one.samples}
    assert "meshd_gateway_requests" in names
    assert "meshd_prompt_tokens" not in names


def test_keys_and_models_are_bounded() -> None:
    metrics = GatewayMetrics(process=False)
    for number in range(MAX_MODELS + MAX_KEYS + 10):
        model, key = f"m{number}", f"k{number}"
        metrics.answered(Answered(model, CHAT, 200, 1.0, tokens=Tokens(1, 1), key=key))
        metrics.upstream_failed(model, "died")
        metrics.running(model, here=True).inc()
        metrics.waiting(model).inc()
    for name in ("meshd_prompt_tokens", "meshd_upstream_errors", "meshd_num_requests_waiting"):
        (family,) = (one for one in metrics.registry.collect() if one.name == name)
        assert len({sample.labels["model"] for sample in family.samples}) == MAX_MODELS + 1
    beyond = MAX_KEYS + 10
    assert _value(metrics, "meshd_num_requests_waiting", model=OTHER) == beyond
    assert _value(metrics, "meshd_key_requests_total", key=OTHER) == MAX_MODELS + 10


def test_running_requests_are_told_apart_by_whose_engine_has_them() -> None:
    metrics = GatewayMetrics(process=False)
    with metrics.running("m", here=True):
        metrics.running("m", here=False).inc(2)
        assert _value(metrics, "meshd_num_requests_running", model="m", place="here") == 1
    assert _value(metrics, "meshd_num_requests_running", model="m", place="here") == 0
    assert _value(metrics, "meshd_num_requests_running", model="m", place="peer") == 2


def test_all_outcomes_of_lost_streams_are_there_from_the_beginning() -> None:
    metrics = GatewayMetrics(process=False)
    metrics.resumed(Resumption.RESUMED)
    for outcome in Resumption:
        seen = _value(metrics, "meshd_streams_resumed_total", outcome=outcome.value)
        assert seen == (outcome is Resumption.RESUMED)


@given(st.lists(st.floats(0, 20) | st.sampled_from([0.1, 1.0, 10.0]), max_size=40))
def test_histograms_are_the_library_s(amounts: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    buckets = (0.1, 1.0, 10.0)
    fast = FastHistogram("h_seconds", "h", ("model",), buckets, ours).labels("m")
    slow = Histogram("h_seconds", "h", ("model",), buckets=buckets, registry=theirs).labels("m")
    for amount in amounts:
        fast.observe(amount)
        slow.observe(amount)

    def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
        return {
            (sample.name, sample.labels.get("le", "")): sample.value
            for family in registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    assert samples(ours) == pytest.approx(samples(theirs))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=20))
def test_counts_are_the_librarys(steps: list[tuple[str, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastCounts(CounterMetricFamily, "c", "says", ("model",), ours)
    level = FastCounts(GaugeMetricFamily, "g", "says", ("model",), ours)
    slow = Counter("c", "says", ["model"], registry=theirs)
    slow_level = Gauge("g", "says", ["model"], registry=theirs)
    for model, amount in steps:
        fast.labels(model).inc(amount)
        slow.labels(model).inc(amount)
        level.labels(model).__enter__()
        slow_level.labels(model).inc()
        with level.labels(model):
            level.labels(model).inc(amount)
        slow_level.labels(model).inc(amount)

    def text(registry: CollectorRegistry) -> list[bytes]:
        lines = generate_latest(registry).splitlines()
        return [line for line in lines if b"_created" not in line]

    assert text(ours) == text(theirs)
    with pytest.raises(ValueError, match="labels"):
        fast.labels("a", "b")
    with pytest.raises(ValueError, match="Duplicated"):
        FastCounts(CounterMetricFamily, "c", "says", ("model",), ours)


def test_both_expositions_can_be_parsed() -> None:
    metrics = GatewayMetrics()
    metrics.answered(Answered('m"\n\\', CHAT, 200, 1.0, first_token_s=0.1, tokens=Tokens(1, 5)))
    text, _ = metrics.exposition("")
    families = {one.name: one for one in text_string_to_metric_families(text.decode())}
    (count,) = (
        sample
        for sample in families["meshd_time_to_first_token_seconds"].samples
        if sample.name.endswith("_count")
    )
    assert count.value == 1
    assert count.labels["model"] == 'm"\n\\'
    text, kind = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def _of_registry() -> tuple[set[str], dict[str, set[str]]]:
    """Names of samples, and the labels of each."""
    metrics = GatewayMetrics()
    one = Answered(
        "m", CHAT, 200, 1.0, first_token_s=0.1, tokens=Tokens(1, 5), key="k", quality="exact"
    )
    metrics.answered(one)
    metrics.upstream_failed("m", "died")
    metrics.running("m", here=True)
    labels: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return set(labels), labels


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_the_dashboard_shows_what_there_is_and_all_of_it() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    names, labels = _of_registry()
    shown: set[str] = set()
    queries = [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]
    for expression in [*_expressions(dashboard), *queries]:
        found = set(re.findall(r"\b(?:meshd|process)_[a-z0-9_]+", expression))
        assert found, expression
        assert found <= names, expression
        shown |= found
        known = set().union(*(labels[name] for name in found)) | {"instance", "job"}
        used = set(re.findall(r"(\w+)=~?\"", expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            used |= set(group.split(", "))
        assert used <= known, expression
    ours = {re.sub(r"_(bucket|count|sum)$", "", name) for name in names if "meshd_" in name}
    ours = {name for name in ours if not name.endswith("_created")}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    assert families >= ours
    assert families - ours == OF_PROCESS


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, panel["title"]
                cells.add((x, y))
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(_expressions(dashboard))))
    assert used - {"__rate_interval"} <= variables
    assert "datasource" in variables


CREATED = b'event: response.created\ndata: {"type":"response.created","response":{"id":"r"}}\n\n'
COMPLETED = (
    b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":'
    b'{"input_tokens":12,"output_tokens":3,"total_tokens":15}},'
    b'"timings":{"cache_n":11,"prompt_n":1,"prompt_ms":2.5,"predicted_n":3,"predicted_ms":35.0}}\n\n'
)
DELTA = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","delta":"H"}\n\n'
)
START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"x","usage":'
    b'{"cache_read_input_tokens":11,"input_tokens":1,"output_tokens":0}}}\n\n'
)
BLOCK = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"S"}}\n\n'
)
LAST = b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":3}}\n\n'


@pytest.mark.parametrize(
    ("events", "tokens"),
    [
        ((CREATED, DELTA, DELTA, COMPLETED), Tokens(12, 3)),
        ((CREATED, DELTA, DELTA), Tokens(0, 2)),
        ((START, BLOCK, BLOCK, LAST), Tokens(12, 3)),
        ((START, BLOCK, BLOCK), Tokens(12, 2)),
        ((b": waiting\n\n",), Tokens()),
    ],
)
def test_streams_of_all_protocols_are_counted(events: tuple[bytes, ...], tokens: Tokens) -> None:
    by_event, at_once = StreamTokens(), StreamTokens()
    for event in events:
        by_event.feed(event)
    at_once.feed(b"".join(events))
    assert by_event.tokens == at_once.tokens == tokens
    assert by_event.begun == any(b"data: " in event for event in events)


def test_the_engine_s_own_times_are_read() -> None:
    counted = StreamTokens()
    counted.feed(CREATED)
    assert counted.timings is None
    counted.feed(COMPLETED)
    assert counted.timings == Timings(2.5, 35.0, 11)
    forged = b'{"timings":{"prompt_ms":-1,"predicted_ms":1e300}}'
    assert costs_of(forged)[1] == Timings(0, 86_400_000)
    assert costs_of(b'{"timings":{"predicted_n":1}}')[1] is None
    assert costs_of(b"{")[1] is None


def test_whole_answers_of_all_protocols_are_counted() -> None:
    usage = b'{"usage":{"input_tokens":1,"cache_read_input_tokens":11,"output_tokens":3}}'
    assert costs_of(usage)[0] == Tokens(12, 3)
    assert costs_of(b'{"usage":{"prompt_tokens":5,"total_tokens":5}}')[0] == Tokens(5, 0)
