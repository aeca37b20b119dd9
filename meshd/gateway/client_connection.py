"""One connection of a client: aiohttp's, with a deadline for heads, and errors in our shape.

aiohttp waits for a head as long as for the next request; a client that sends a byte now and then
(slow loris) would hold its connection for that long, again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from meshd.gateway.headers import REQUEST_ID, request_id
from meshd.gateway.openai_error import BUSY_RETRY_S, ApiError, unavailable
from meshd.gateway.protocols import dialect_of, error_body

MAX_LINE_BYTES = 8190
HEAD_S = 10.0
"""From a head's first byte to its last."""
IDLE_S = 75.0
"""Between two requests, and before the first."""

_log = structlog.get_logger("meshd.gateway")


class ClientConnection(RequestHandler):
    """Made by `ClientDoor`, which counts it and looks at it every second."""

    __slots__ = ("_busy", "_head_since_s", "_loop_time", "_refused", "left")

    def __init__(
        self, server: web.Server, loop: asyncio.AbstractEventLoop, **settings: Any
    ) -> None:
        """:param settings: of `RequestHandler`."""
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            **{"keepalive_timeout": IDLE_S, **settings},
        )
        self.left: Callable[[], None] = _nothing
        self._loop_time = loop.time
        self._head_since_s: float | None = None
        self._busy = False
        self._refused = False

    def refuse(self, transport: asyncio.WriteTransport, why: str) -> None:
        """Answer that there is no room, whatever is asked, and hang up."""
        self._refused = True
        transport.write(_raw("503 Service Unavailable", _no_room(why), retry_s=BUSY_RETRY_S))
        transport.close()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._head_since_s is None and not self._busy and data:
            self._head_since_s = self._loop_time()
        super().data_received(data)

    def eof_received(self) -> None:
        if not self._refused:
            super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.left()
        if not self._refused:
            super().connection_lost(exc)

    def begun(self) -> None:
        """A head is complete, or so broken that it will never be."""
        self._busy = True
        self._head_since_s = None

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # of aiohttp itself, such as for `Expect:`
            resp = _response(_refused(resp), request)
        # After a body that broke nothing can be read any more.
        broken = request.content.exception() is not None
        if broken and not resp.prepared:
            resp.force_close()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._busy = False
            if broken:
                self.force_close()

    def look(self, now_s: float) -> bool:
        """Hang up on a client whose head takes too long; whether it was so."""
        if self._head_since_s is None or now_s - self._head_since_s < HEAD_S:
            return False
        self._head_since_s = None
        transport = self.transport
        if transport is not None:
            # Between two requests nothing else is being written.
            transport.write(_raw("408 Request Timeout", _slow_head()))
            transport.close()
        return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """As aiohttp's, but JSON, and with nothing in the log that a client sent."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer was begun already")
        if status >= 500:
            _log.error("the gateway failed", exc_info=exc)
            message = "The gateway failed; its log says why."
            error = ApiError(status, message, "server_error", code="internal")
        else:
            error = _broken(status, exc, message or "")
            _log.debug("request is not HTTP", code=error.status)
        response = _response(error, request)
        response.force_close()
        return response


def _nothing() -> None:
    """Until it is counted, nobody needs to hear that it ended."""


def _refused(refusal: web.HTTPException) -> ApiError:
    """What aiohttp refuses before any endpoint sees it."""
    code = "expectation_failed" if refusal.status == 417 else "invalid_http"
    return ApiError(refusal.status, refusal.text or refusal.reason, code=code)


def _broken(status: int, exc: BaseException | None, message: str) -> ApiError:
    if isinstance(exc, LineTooLong):
        text = f"The request's first line, or one of its headers, has over {MAX_LINE_BYTES} bytes."
        return ApiError(431, text, code="headers_too_large")
    # Further lines would quote the request.
    words = message.partition("\n")[0].strip().rstrip(":.")
    if words.startswith("Too many headers"):
        return ApiError(431, "The request has too many headers.", code="headers_too_large")
    if words.startswith("Can not decode content-encoding"):
        text = "The request's body is packed in a way that is not known here; gzip and deflate are."
        return ApiError(415, text, code="unknown_encoding")
    return ApiError(status, f"This is not valid HTTP: {words}.", code="invalid_http")


def _no_room(why: str) -> ApiError:
    return unavailable(why, "gateway_overloaded", BUSY_RETRY_S)


def _slow_head() -> ApiError:
    return ApiError(408, f"The request's head took over {HEAD_S:g} s.", code="timeout")


def _response(error: ApiError, request: web.BaseRequest) -> web.Response:
    """As far as its path is known, in its protocol's shape."""
    dialect, given_id = dialect_of(request.path, request.headers), request_id(request.headers)
    response = web.Response(
        status=error.status,
        body=error_body(dialect, error, given_id),
        content_type="application/json",
    )
    for name in filter(None, (REQUEST_ID, dialect.id_header)):
        response.headers[name] = given_id
    return response


def _raw(status: str, error: ApiError, *, retry_s: int = 0) -> bytes:
    body = error.body()
    retry = f"Retry-After: {retry_s}\r\n" if retry_s else ""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{REQUEST_ID}: {request_id({})}\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + body
