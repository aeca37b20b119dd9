"""Traces reach a collector, as OpenTelemetry's own messages; what does not is counted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.otlp import MAX_WAITING_SPANS, engine_stages
from meshd.gateway.routes import Front, RoutingTable
from meshd.gateway.telemetry import OFF, Reported, Telemetry
from meshd.gateway.tokens import Timings
from tests.wire.gateway_harness import CHUNKED_END, DONE, SSE_HEAD, Call, chunk, engine, event
from tests.wire.mesh_harness import node, table

CHAT = "/v1/chat/completions"
DEADLINE_S = 15.0
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


@dataclass
class Receiver:
    """As much of a collector as a test needs. :ivar status: what it answers."""

    url: str = ""
    status: int = 200
    spans: list[Span] = field(default_factory=list)
    services: list[dict[str, str]] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def take(self, request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        if self.hold is not None:
            await self.hold.wait()
        if self.status == 200:
            for resource in message.resource_spans:
                self.services.append(
                    {one.key: one.value.string_value for one in resource.resource.attributes}
                )
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return web.Response(status=self.status)

    def named(self, name: str) -> Span:
        (span,) = (one for one in self.spans if one.name == name)
        return span


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    receiver.url = f"http://{host}:{port}"
    try:
        yield receiver
    finally:
        if receiver.hold is not None:
            receiver.hold.set()
        await runner.cleanup()


@asynccontextmanager
async def telling(url: str, node: str = "n1") -> AsyncIterator[tuple[Telemetry, GatewayMetrics]]:
    metrics = GatewayMetrics(process=False)
    telemetry = Telemetry(metrics)
    telemetry.table_changed(_table(url, node))
    await _until(lambda: not url or telemetry.request({}, CHAT, "probe") is not OFF)
    try:
        yield telemetry, metrics
    finally:
        await telemetry.close()


def _table(url: str, node: str = "n1") -> RoutingTable:
    return RoutingTable(node=node, mesh="mesh-1", front=Front(otlp=url))


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():
            await asyncio.sleep(0.01)


def _facts(span: Span) -> dict[str, object]:
    return {
        one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes
    }


async def test_a_request_s_stages_are_one_trace_by_the_field_s_names() -> None:
    async with receiving() as receiver:
        async with telling(receiver.url) as (telemetry, metrics):
            with telemetry.request({}, CHAT, "r1") as trace:
                with trace.stage("queue", position=3):
                    pass
                with trace.stage("engine", node="n2", attempt=2, resumed=True) as stage:
                    stage.measured(Timings(40.0, 160.0, 11))
                trace.note(model="tiny", code=200, prompt_tokens=12, completion_tokens=3)
        request = receiver.named("chat tiny")
        assert request.kind == Span.SPAN_KIND_SERVER
        assert _facts(request) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "llama.cpp",
            "gen_ai.request.model": "tiny",
            "gen_ai.usage.input_tokens": 12,
            "gen_ai.usage.output_tokens": 3,
            "http.response.status_code": 200,
            "http.route": CHAT,
            "meshd.request_id": "r1",
        }
        assert _facts(receiver.named("queue")) == {"meshd.position": 3}
        engine = receiver.named("engine")
        assert engine.kind == Span.SPAN_KIND_CLIENT
        assert _facts(engine) == {
            "meshd.node": "n2",
            "meshd.attempt": 2,
            "meshd.resumed": True,
            "gen_ai.usage.cache_read.input_tokens": 11,
        }
        parents = {span.name: span.parent_span_id for span in receiver.spans}
        assert parents["queue"] == parents["engine"] == request.span_id
        assert parents["prefill"] == parents["decode"] == engine.span_id
        assert len({span.trace_id for span in receiver.spans}) == 1
        assert receiver.services[0]["service.name"] == "meshd-gateway"
        assert receiver.services[0]["service.instance.id"] == "n1"
        assert receiver.services[0]["service.namespace"] == "mesh-1"
        assert metrics.registry.get_sample_value("meshd_gateway_spans_exported_total") == 5


async def test_two_gateways_and_the_client_are_one_trace() -> None:
    async with (
        receiving() as receiver,
        telling(receiver.url, "entry") as (entry, _),
        telling(receiver.url, "far") as (far, _),
    ):
        caller = {"Traceparent": f"00-{TRACE}-{CALLER}-01", "Tracestate": "vendor=x"}
        with entry.request(caller, CHAT, "r1") as trace, trace.stage("engine") as stage:
            head = dict(stage.headers())
            with far.request(head, CHAT, "r1") as there:
                there.note(model="far")
        assert head["Tracestate"] == "vendor=x"
        await entry.close()
        await far.close()
        entered, hop = receiver.named("chat"), receiver.named("chat far")
        assert entered.trace_id.hex() == hop.trace_id.hex() == TRACE
        assert entered.parent_span_id.hex() == CALLER
        assert hop.parent_span_id == receiver.named("engine").span_id
        nodes = {one["service.instance.id"] for one in receiver.services}
        assert nodes == {"entry", "far"}


async def test_a_request_over_two_nodes_is_one_trace_from_the_client_to_the_engine(
    tmp_path: Path,
) -> None:
    """Through whole gateways and an engine that measures itself."""
    heads: list[str] = []
    last = (
        b'data: {"choices":[{"index":0,"delta":{}}],"timings":{"prompt_n":7,"prompt_ms":4.0,'
        b'"predicted_n":2,"predicted_ms":8.0,"cache_n":3}}\n\n'
    )

    async def answers(call: Call) -> None:
        heads.append(call.head)
        await call.send(SSE_HEAD + chunk(event("a")) + chunk(last) + chunk(DONE) + CHUNKED_END)

    path = tmp_path / "e.sock"
    async with (
        receiving() as receiver,
        engine(path, answers),
        node(tmp_path, "a") as a,
        node(tmp_path, "b") as b,
    ):
        traced = Front(otlp=receiver.url)
        await b.tell(replace(table([b.own(path)], [a, b]), front=traced))
        await a.tell(replace(table([b.seen()], [a, b]), front=traced))

        async def both_tell() -> bool:
            await a.running.post({"model": "m", "stream": True})
            told = {one["service.instance.id"] for one in receiver.services}
            return told == {a.id, b.id}

        async with asyncio.timeout(DEADLINE_S):
            while not await both_tell():
                await asyncio.sleep(0.1)
        receiver.spans.clear()
        parent = {"Traceparent": f"00-{TRACE}-{CALLER}-01"}
        answer = await a.running.http.post(
            a.running.base + CHAT, json={"model": "m", "stream": True}, headers=parent
        )
        assert b"[DONE]" in await answer.read()

        def ours() -> list[Span]:
            return [one for one in receiver.spans if one.trace_id.hex() == TRACE]

        await _until(lambda: len(ours()) == 8)
        by_id = {one.span_id: one for one in ours()}
        (decode,) = (one for one in ours() if one.name == "decode")
        names = []
        span = decode
        while span.parent_span_id in by_id:
            span = by_id[span.parent_span_id]
            names.append(span.name)
        assert names == ["engine", "chat m", "engine", "chat m"]
        assert span.parent_span_id.hex() == CALLER
        assert sorted(one.name for one in ours()) == sorted(
            ["chat m", "route", "engine", "chat m", "route", "engine", "prefill", "decode"]
        )
        facts = _facts(span)
        assert facts["gen_ai.usage.input_tokens"] == 10
        assert facts["gen_ai.usage.output_tokens"] == 2
        assert facts["http.response.status_code"] == 200
        assert facts["meshd.first_token_s"]
        inner = by_id[decode.parent_span_id]
        to_engine = heads[-1].lower().split("traceparent: ")[1].split()[0]
        assert to_engine == f"00-{TRACE}-{inner.span_id.hex()}-01"


async def test_what_a_client_does_not_want_recorded_is_not_but_its_context_goes_on() -> None:
    async with receiving() as receiver:
        async with telling(receiver.url) as (telemetry, _):
            caller = {"Traceparent": f"00-{TRACE}-{CALLER}-00"}
            with telemetry.request(caller, CHAT, "r1") as trace, trace.stage("engine") as stage:
                assert TRACE in stage.headers()["Traceparent"]
                assert stage.headers()["Traceparent"].endswith("-00")
                stage.measured(Timings(1.0, 1.0))
        assert receiver.spans == []


@pytest.mark.parametrize("given", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", ""])
async def test_a_broken_context_begins_a_new_trace(given: str) -> None:
    async with receiving() as receiver:
        async with telling(receiver.url) as (telemetry, _):
            with telemetry.request({"Traceparent": given}, CHAT, "r1"):
                pass
        assert not receiver.named("chat").parent_span_id


async def test_failures_are_told_by_kind_and_never_by_their_words() -> None:
    secret = "the prompt was: secret"
    async with receiving() as receiver:
        async with telling(receiver.url) as (telemetry, _):
            with (
                pytest.raises(ValueError, match="secret"),
                telemetry.request({}, CHAT, "r1") as trace,
                trace.stage("engine"),
            ):
                raise ValueError(secret)
            with telemetry.request({}, CHAT, "r2") as trace, trace.stage("engine") as stage:
                stage.failed("refused")
        kinds = {str(_facts(span).get("error.type")) for span in receiver.spans}
        assert {"ValueError", "refused"} <= kinds
        assert all(not span.events and not span.status.message for span in receiver.spans)
        failed = [one for one in receiver.spans if one.status.code == Status.STATUS_CODE_ERROR]
        assert len(failed) == 3
        assert secret.encode() not in b"".join(one.SerializeToString() for one in receiver.spans)


async def test_others_may_report_stages_of_their_own() -> None:
    async with receiving() as receiver:
        async with telling(receiver.url) as (telemetry, _):
            now_ns = time.time_ns()
            with telemetry.request({}, CHAT, "r1") as trace, trace.stage("engine") as stage:
                stage.reported([Reported("rpc", now_ns - 5000, now_ns, {"node": "worker"})])
        rpc = receiver.named("rpc")
        assert (rpc.start_time_unix_nano, rpc.end_time_unix_nano) == (now_ns - 5000, now_ns)
        assert _facts(rpc) == {"meshd.node": "worker"}
        assert rpc.parent_span_id == receiver.named("engine").span_id


def test_prefill_and_decode_end_with_the_answer_and_begin_within_the_request() -> None:
    prefill, decode = engine_stages(Timings(40.0, 160.0), end_ns=10**9, earliest_ns=0)
    assert (prefill.start_ns, prefill.end_ns) == (800_000_000, 840_000_000)
    assert (decode.start_ns, decode.end_ns) == (840_000_000, 10**9)
    prefill, decode = engine_stages(Timings(40.0, 1e6), end_ns=10**9, earliest_ns=5 * 10**8)
    assert (prefill.start_ns, prefill.end_ns, decode.start_ns) == (5 * 10**8,) * 3


async def test_a_collector_that_is_away_costs_its_spans_and_one_line() -> None:
    with structlog.testing.capture_logs() as lines:
        async with receiving() as receiver:
            receiver.status = 400
            async with telling(receiver.url) as (telemetry, metrics):

                def count(name: str) -> float:
                    return metrics.registry.get_sample_value(f"meshd_gateway_spans_{name}") or 0.0

                for _ in range(200):
                    with telemetry.request({}, CHAT, "r"):
                        pass
                await _until(lambda: count("dropped_total") == 200)
                receiver.status = 200
                with telemetry.request({}, CHAT, "r"):
                    pass
                await _until(lambda: count("exported_total") == 1)
    said = [line["event"] for line in lines if "collector of traces" in line["event"]]
    assert len(said) == 2
    assert "dropped" in said[0]
    assert "again" in said[1]


async def test_a_collector_that_hangs_holds_up_nothing_and_spans_stay_bounded() -> None:
    async with receiving() as receiver:
        receiver.hold = asyncio.Event()
        async with telling(receiver.url) as (telemetry, metrics):
            dropped = 500
            for _ in range(MAX_WAITING_SPANS + dropped):
                with telemetry.request({}, CHAT, "r"):
                    pass
            name = "meshd_gateway_spans_dropped_total"
            assert metrics.registry.get_sample_value(name) == dropped
            async with asyncio.timeout(DEADLINE_S):
                await telemetry.close()


async def test_traces_begin_move_and_end_with_the_routing_table() -> None:
    async with receiving() as first, receiving() as second, telling("") as (telemetry, _):
        assert telemetry.request({}, CHAT, "r") is OFF
        for receiver in (first, second):
            telemetry.table_changed(_table(receiver.url))
            telemetry.table_changed(_table(receiver.url))
            await _until(lambda: telemetry.request({}, CHAT, "probe") is not OFF)
            with telemetry.request({}, CHAT, "r") as trace:
                trace.note(model=receiver.url)
            telemetry.table_changed(_table(""))
            await _until(lambda one=receiver: bool(one.spans))  # type: ignore[misc]
            assert telemetry.request({}, CHAT, "r") is OFF
        assert first.named(f"chat {first.url}")
        assert second.named(f"chat {second.url}")


async def test_a_wrong_url_is_one_line_and_no_traces() -> None:
    with structlog.testing.capture_logs() as lines:
        telemetry = Telemetry(GatewayMetrics(process=False))
        telemetry.table_changed(_table("ftp://collector/x"))
        await _until(lambda: any(line["event"] == "no traces" for line in lines))
        assert telemetry.request({}, CHAT, "r") is OFF
        await telemetry.close()


def test_who_wants_no_traces_does_not_load_their_libraries() -> None:
    code = (
        "import meshd.gateway.serve, meshd.gateway.telemetry, sys;"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'requests'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
