"""Traces of requests: what the request path says of its stages. Costs nothing while it is off.

Who follows a request writes::

    with telemetry.request(request.headers, path, exchange.request_id) as trace:
        with trace.stage("queue"): ...
        with trace.stage("engine", node=target.node, attempt=2) as stage:
            head |= stage.headers()
            ...
            stage.measured(timings)
        trace.note(model=..., code=..., prompt_tokens=..., completion_tokens=...)

Names and values are those of OpenTelemetry's conventions for generative AI, as far as it has them
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/). Prompts and answers are in no
trace: facts are names, numbers and kinds of failures.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit

import structlog

from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.routes import RoutingTable
from meshd.gateway.tokens import Timings

# For what is still to be sent when traces end; never longer.
_FLUSH_S = 6.0

_log = structlog.get_logger("meshd.gateway")

Fact = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Reported:
    """A stage that somebody else measured: an engine, an RPC worker.

    :ivar start_ns: Unix time in nanoseconds, as :ivar end_ns:.
    """

    name: str
    start_ns: int
    end_ns: int
    facts: Mapping[str, Fact] = field(default_factory=dict)


class Stage(Protocol):
    """One stage while it lasts. What leaves it as an exception is noted by its type."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def stage(self, name: str, **facts: Fact) -> Stage:
        """A stage within this one, from now on."""
        ...

    def note(self, **facts: Fact) -> None:
        """:param facts: by the names of `otlp.ATTRIBUTES`; others get the prefix ``meshd.``."""
        ...

    def failed(self, kind: str) -> None:
        """It failed, by a name that the metrics know, too."""
        ...

    def headers(self) -> Mapping[str, str]:
        """``Traceparent`` and ``Tracestate`` that make another process' spans part of this one.

        Empty while traces are off: the client's own go on, then.
        """
        ...

    def measured(self, timings: Timings | None) -> None:
        """The engine's own times, just read from the end of its answer."""
        ...

    def reported(self, stages: Iterable[Reported]) -> None:
        """Stages within this one that somebody else measured."""
        ...


class _Off:
    """All stages of all requests while traces are off."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def stage(self, name: str, **facts: Fact) -> Stage:
        return self

    def note(self, **facts: Fact) -> None:
        return None

    def failed(self, kind: str) -> None:
        return None

    def headers(self) -> Mapping[str, str]:
        return _NOTHING

    def measured(self, timings: Timings | None) -> None:
        return None

    def reported(self, stages: Iterable[Reported]) -> None:
        return None


_NOTHING: Mapping[str, str] = {}
OFF: Stage = _Off()


class Tracing(Protocol):
    """Traces that go somewhere. Neither method blocks for longer than it takes to note things."""

    def request(self, headers: Mapping[str, str], path: str, request_id: str) -> Stage: ...

    def close(self) -> None:
        """Send what there is. Blocks for some seconds at most."""
        ...


@dataclass(frozen=True, slots=True)
class Collector:
    """:ivar url: of OTLP/HTTP, with the path for traces. :ivar node: id of this node."""

    url: str
    node: str = ""
    mesh: str = ""


Open = Callable[[Collector, GatewayMetrics], Tracing]


def collector(table: RoutingTable) -> Collector | None:
    """Where traces go by this table, None for nowhere.

    A URL without a path is a collector's base URL, as in OTEL_EXPORTER_OTLP_ENDPOINT:
    https://opentelemetry.io/docs/specs/otel/protocol/exporter/#endpoint-urls-for-otlphttp.

    :raises ValueError: it is no URL.
    """
    url = table.front.otlp
    if not url:
        return None
    if urlsplit(url).path in ("", "/"):
        url = url.rstrip("/") + "/v1/traces"
    return Collector(url, table.node, table.mesh)


def open_otlp(collector: Collector, metrics: GatewayMetrics) -> Tracing:
    """:raises ImportError: OpenTelemetry's libraries are not installed.

    :raises ValueError: the URL is none.
    """
    # 4 MiB and a tenth of a second that only they pay who want traces.
    from meshd.gateway.otlp import OtlpTracing

    return OtlpTracing(collector, metrics)


class Telemetry:
    """Follows the routing table's wish for traces."""

    def __init__(self, metrics: GatewayMetrics, open_tracing: Open = open_otlp) -> None:
        """:param open_tracing: called in a thread: it may block."""
        self._metrics = metrics
        self._open = open_tracing
        self._tracing: Tracing | None = None
        self._wanted: Collector | None = None
        self._current: Collector | None = None
        self._switching: asyncio.Task[None] | None = None
        self._url = ""

    def request(self, headers: Mapping[str, str], path: str, request_id: str) -> Stage:
        """One request from here on, as part of the client's trace if it has one.

        :param path: of the endpoint as the gateway lists it.
        """
        tracing = self._tracing
        return OFF if tracing is None else tracing.request(headers, path, request_id)

    def table_changed(self, table: RoutingTable) -> None:
        """Begin, end or move the traces, in the background."""
        url, self._url = self._url, table.front.otlp
        try:
            self._wanted = collector(table)
        except ValueError as error:
            self._wanted = None
            if url != self._url:
                _log.warning("no traces", reason=f"gateway.otlp: {error}")
        if self._wanted != self._current and self._switching is None:
            self._switching = asyncio.create_task(self._switch())

    async def close(self) -> None:
        """Send what there is, within a few seconds."""
        self._wanted = None
        if self._current is not None and self._switching is None:
            self._switching = asyncio.create_task(self._switch())
        if self._switching is not None:
            await self._switching

    async def _switch(self) -> None:
        try:
            while (wanted := self._wanted) != self._current:
                before, self._tracing = self._tracing, None
                self._current = wanted
                if wanted is not None:
                    self._tracing = await self._opened(wanted)
                if before is not None:
                    await _in_thread(before.close, _FLUSH_S)
        finally:
            self._switching = None

    async def _opened(self, wanted: Collector) -> Tracing | None:
        try:
            tracing = await asyncio.to_thread(self._open, wanted, self._metrics)
        except (ImportError, ValueError) as error:
            _log.warning("no traces", reason=str(error))
            return None
        _log.info("traces begin", collector=urlsplit(wanted.url).hostname)
        return tracing


async def _in_thread(work: Callable[[], None], limit_s: float) -> None:
    """As `asyncio.to_thread`, but a thread that hangs does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="traces-close", daemon=True).start()
    try:
        async with asyncio.timeout(limit_s):
            await done.wait()
    except TimeoutError:
        _log.warning("the last spans were not sent in time")
