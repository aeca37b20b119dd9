"""Sends a request to an engine and its answer back to the client, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import structlog
from aiohttp import web

from meshd.gateway import headers, openai_error
from meshd.gateway.choice import NEEDS, Chosen, Refused, choose
from meshd.gateway.engine_call import EngineFailed, call
from meshd.gateway.event_stream import EventStream
from meshd.gateway.exchange import Exchange, HeldBody
from meshd.gateway.intake import Intake, Refuse
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.openai_error import ApiError
from meshd.gateway.request_body import BadBodyError, model_of, with_model
from meshd.gateway.routes import RoutingTable, Target
from meshd.gateway.table_watch import TableWatch
from meshd.gateway.upstreams import Deadlines, Upstreams

MAX_ANSWER_BYTES = 256 * 1024 * 1024

# A request that kills engines must not go through all replicas.
_MAX_ENGINES_LOST = 2

_log = structlog.get_logger("meshd.gateway")


class Relay:
    """The way of a request from the client to an engine and back."""

    def __init__(
        self,
        watch: TableWatch,
        upstreams: Upstreams,
        metrics: GatewayMetrics,
        deadlines: Deadlines,
    ) -> None:
        self._watch = watch
        self._upstreams = upstreams
        self._metrics = metrics
        self._deadlines = deadlines
        self._intake = Intake(deadlines.client_body)
        self._waits: set[asyncio.Timeout] = set()
        self._stopping = False

    def stop(self) -> None:
        """End all running answers now, each with an error that says so."""
        self._stopping = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)

    async def handle(
        self, request: web.Request, path: str, exchange: Exchange
    ) -> web.StreamResponse:
        """Answer one inference request.

        :param path: of the engine's endpoint.
        :raises Refuse: with the error to answer; nothing has been sent then.
        """
        table = self._watch.table
        if table is None:
            raise Refuse(openai_error.no_table())
        body = HeldBody(await self._intake.read(request, table.max_body_bytes), self._intake)
        try:
            return await self._route(request, path, table, body, exchange)
        except BadBodyError as error:
            raise Refuse(ApiError(400, error.message, param=error.param, code=error.code)) from None
        finally:
            body.give_back()

    async def _route(
        self,
        request: web.Request,
        path: str,
        table: RoutingTable,
        body: HeldBody,
        exchange: Exchange,
    ) -> web.StreamResponse:
        model = model_of(body.data)
        tried: frozenset[str] = frozenset()
        lost = 0
        while True:
            choice = choose(
                table,
                model,
                self._upstreams.in_flight,
                self._upstreams.suspects | tried,
                needs=NEEDS.get(path, frozenset()),
            )
            if isinstance(choice, Refused):
                exchange.model = choice.route.model if choice.route else ""
                raise Refuse(openai_error.refused(choice, model, table))
            if model != choice.route.model:
                model = choice.route.model
                body.data = with_model(body.data, model)
            exchange.model = model
            try:
                return await self._attempt(request, path, choice, body, exchange)
            except EngineFailed as failed:
                self._note(exchange, failed.kind)
                self._upstreams.suspect(choice.target.socket)
                tried |= {choice.target.socket}
                lost += failed.lost
                if lost >= _MAX_ENGINES_LOST:
                    raise Refuse(openai_error.engine_lost(model)) from None
            table = self._watch.table or table

    async def _attempt(
        self,
        request: web.Request,
        path: str,
        choice: Chosen,
        body: HeldBody,
        exchange: Exchange,
    ) -> web.StreamResponse:
        target = choice.target
        head = headers.to_engine(request.headers, exchange.request_id)
        in_flight = self._metrics.in_flight.labels(exchange.model)
        with self._upstreams.request(target.socket), in_flight.track_inprogress():
            try:
                async with self._within(self._deadlines.answer):
                    session = self._upstreams.session(target.socket)
                    answer = await call(session, path, body.data, head)
            except TimeoutError:
                raise Refuse(self._too_late(exchange)) from None
            try:
                body.give_back()  # there is no retry from here on
                if answer.status == 200 and answer.content_type == "text/event-stream":
                    return await self._stream(request, target, answer, exchange)
                return await self._whole(target, answer, exchange)
            finally:
                answer.close()

    async def _whole(
        self, target: Target, answer: aiohttp.ClientResponse, exchange: Exchange
    ) -> web.Response:
        """An answer that is sent when it is complete, so that a broken one can be an error."""
        pieces: list[bytes] = []
        size_bytes = 0
        try:
            async with self._within(self._deadlines.idle) as wait:
                async for piece in answer.content.iter_any():
                    size_bytes += len(piece)
                    if size_bytes > MAX_ANSWER_BYTES:
                        self._note(exchange, "too_large")
                        raise Refuse(openai_error.engine_lost(exchange.model, "answered too much"))
                    pieces.append(piece)
                    self._extend(wait)
        except TimeoutError:
            raise Refuse(self._too_late(exchange)) from None
        except (aiohttp.ClientError, OSError):
            self._note(exchange, "died")
            self._upstreams.suspect(target.socket)
            raise Refuse(openai_error.engine_lost(exchange.model)) from None
        text = b"".join(pieces)
        exchange.first_byte()
        if answer.status >= 400:
            raise Refuse(openai_error.from_upstream(answer.status, text))
        response = web.Response(
            status=answer.status, body=text, headers=headers.to_client(answer.headers)
        )
        response.headers[headers.NODE] = target.node
        return response

    async def _stream(
        self,
        request: web.Request,
        target: Target,
        answer: aiohttp.ClientResponse,
        exchange: Exchange,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers.to_client(answer.headers))
        response.headers[headers.NODE] = target.node
        response.headers.setdefault("Cache-Control", "no-cache")
        await response.prepare(request)
        events = EventStream()
        client_waits = False
        error: ApiError | None = None
        try:
            async with self._within(self._deadlines.idle) as wait:
                async for piece in answer.content.iter_any():
                    if ready := events.feed(piece):
                        client_waits = True
                        await response.write(ready)
                        client_waits = False
                        exchange.first_byte()
                    self._extend(wait)
            error = _ending(events, exchange.model)
            if error:
                self._note(exchange, "unfinished")
        except TimeoutError:
            if client_waits and not self._stopping:
                # Its buffers are full: no error would reach it either.
                exchange.failure = "client_stalled"
                request.transport.abort() if request.transport else None
                return response
            error = self._too_late(exchange)
        except (aiohttp.ClientError, OSError):
            if client_waits:
                raise  # the client's own connection broke
            self._note(exchange, "died_mid_stream")
            self._upstreams.suspect(target.socket)
            error = openai_error.engine_lost(exchange.model)
        await self._finish(response, events, error)
        return response

    async def _finish(
        self, response: web.StreamResponse, events: EventStream, error: ApiError | None
    ) -> None:
        try:
            async with asyncio.timeout(self._deadlines.connect):
                if error is None:
                    await response.write(events.rest())
                else:
                    # After a piece of an overlong event, its end; else we are at an event's end.
                    end = b"" if events.whole else b"\n\n"
                    await response.write(end + error.event())
                await response.write_eof()
        except TimeoutError:
            _log.warning("client does not take the end of its stream")

    @asynccontextmanager
    async def _within(self, seconds: float) -> AsyncIterator[asyncio.Timeout]:
        async with asyncio.timeout(0 if self._stopping else seconds) as wait:
            self._waits.add(wait)
            try:
                yield wait
            finally:
                self._waits.discard(wait)

    def _extend(self, wait: asyncio.Timeout) -> None:
        if not self._stopping:
            wait.reschedule(asyncio.get_running_loop().time() + self._deadlines.idle)

    def _too_late(self, exchange: Exchange) -> ApiError:
        if self._stopping:
            return openai_error.stopping()
        self._note(exchange, "timeout")
        return openai_error.engine_silent(exchange.model)

    def _note(self, exchange: Exchange, kind: str) -> None:
        exchange.failure = kind
        self._metrics.upstream_errors.labels(exchange.model, kind).inc()


def _ending(events: EventStream, model: str) -> ApiError | None:
    """What a stream that the engine ended itself still lacks: the truth, if it was not done."""
    rest = events.rest()
    if events.done or events.failed or rest.startswith(b"data: [DONE]"):
        return None
    if rest:
        return openai_error.from_upstream(502, rest)
    return openai_error.engine_lost(model, "ended its answer too early")
