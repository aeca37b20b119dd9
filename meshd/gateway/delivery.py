"""Gives an engine's answer to the client, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiohttp import web

from meshd.gateway import headers, openai_error
from meshd.gateway.engine_http.answer import Answer, AnswerBroken
from meshd.gateway.event_stream import EventStream
from meshd.gateway.exchange import Exchange
from meshd.gateway.intake import Refuse
from meshd.gateway.openai_error import ApiError
from meshd.gateway.protocols import CHAT, PROTOCOLS, Protocol
from meshd.gateway.routes import Target
from meshd.gateway.tokens import StreamTokens, Tokens, tokens_of
from meshd.gateway.upstreams import Deadlines
from meshd.gateway.waits import Waits

MAX_ANSWER_BYTES = 256 * 1024 * 1024

_log = structlog.get_logger("meshd.gateway")


class Delivery:
    """From the answer's head on, there is no other engine to try."""

    def __init__(
        self,
        deadlines: Deadlines,
        waits: Waits,
        failed: Callable[[Exchange, str], None],
        suspect: Callable[[Target], None],
    ) -> None:
        """:param failed: notes how an engine failed a request."""
        self._deadlines = deadlines
        self._waits = waits
        self._failed = failed
        self._suspect = suspect

    async def whole(self, target: Target, answer: Answer, exchange: Exchange) -> web.Response:
        """An answer that is sent when it is complete, so that a broken one can be an error."""
        pieces: list[bytes] = []
        size_bytes = 0
        try:
            async with self._waits.within(self._deadlines.idle) as wait:
                while piece := await answer.piece():
                    size_bytes += len(piece)
                    if size_bytes > MAX_ANSWER_BYTES:
                        self._failed(exchange, "too_large")
                        raise Refuse(openai_error.engine_lost(exchange.model, "answered too much"))
                    pieces.append(piece)
                    self._waits.extend(wait, self._deadlines.idle)
        except TimeoutError:
            raise Refuse(self.too_late(exchange)) from None
        except AnswerBroken:
            self._failed(exchange, "died")
            self._suspect(target)
            raise Refuse(openai_error.engine_lost(exchange.model)) from None
        text = b"".join(pieces)
        if answer.status >= 400:
            raise Refuse(openai_error.from_upstream(answer.status, text))
        exchange.tokens = tokens_of(text) or Tokens()
        response = web.Response(
            status=answer.status, body=text, headers=headers.to_client(answer.headers)
        )
        response.headers[headers.NODE] = target.name or target.node
        return response

    async def stream(
        self,
        request: web.Request,
        target: Target,
        answer: Answer,
        first: bytes,
        exchange: Exchange,
    ) -> web.StreamResponse:
        """Events, each as soon as it is whole. :param first: what of the body is here already."""
        response = web.StreamResponse(headers=headers.to_client(answer.headers))
        response.headers[headers.NODE] = target.name or target.node
        response.headers.setdefault("Cache-Control", "no-cache")
        await response.prepare(request)
        protocol = PROTOCOLS.get(request.path, CHAT)
        events, counted = EventStream(protocol), StreamTokens()
        client_waits = False
        error: ApiError | None = None
        piece = first
        try:
            async with self._waits.within(self._deadlines.idle) as wait:
                while piece:
                    if ready := events.feed(piece):
                        counted.feed(ready)
                        client_waits = True
                        await response.write(ready)
                        client_waits = False
                        if counted.begun:
                            exchange.first_token()
                    self._waits.extend(wait, self._deadlines.idle)
                    piece = await answer.piece()
            error = _ending(events, exchange.model)
            if error:
                self._failed(exchange, "unfinished")
        except TimeoutError:
            if client_waits and not self._waits.stopping:
                # Its buffers are full: no error would reach it either.
                exchange.failure = "client_stalled"
                request.transport.abort() if request.transport else None
                return response
            error = self.too_late(exchange)
        except AnswerBroken:
            self._failed(exchange, "died_mid_stream")
            self._suspect(target)
            error = openai_error.engine_lost(exchange.model)
        finally:
            exchange.tokens = counted.tokens
        await self._finish(response, protocol, events, error)
        return response

    def too_late(self, exchange: Exchange) -> ApiError:
        """What to say of a wait that ended."""
        if self._waits.stopping:
            return openai_error.stopping()
        self._failed(exchange, "timeout")
        return openai_error.engine_silent(exchange.model)

    async def _finish(
        self,
        response: web.StreamResponse,
        protocol: Protocol,
        events: EventStream,
        error: ApiError | None,
    ) -> None:
        try:
            async with asyncio.timeout(self._deadlines.connect):
                if error is None:
                    await response.write(events.rest())
                else:
                    # After a piece of an overlong event, its end; else we are at an event's end.
                    end = b"" if events.whole else b"\n\n"
                    await response.write(end + protocol.error_event(error))
                await response.write_eof()
        except TimeoutError:
            _log.warning("client does not take the end of its stream")


def _ending(events: EventStream, model: str) -> ApiError | None:
    """What a stream that the engine ended itself still lacks: the truth, if it was not done."""
    rest = events.rest()
    if events.complete or events.failed:
        return None
    if rest:
        return openai_error.from_upstream(502, rest)
    return openai_error.engine_lost(model, "ended its answer too early")
