"""The endpoints: which path does what, and that every error has its protocol's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import msgspec
import structlog
from aiohttp import web

import meshd
from meshd.gateway import headers, model_list, openai_error
from meshd.gateway.ask import Ask
from meshd.gateway.choice import Refused, servable
from meshd.gateway.engine_call import LOST
from meshd.gateway.exchange import Exchange
from meshd.gateway.front_door import FrontDoor
from meshd.gateway.intake import Refuse
from meshd.gateway.metrics import NO_MODEL, UNKNOWN_MODEL, Answered, GatewayMetrics
from meshd.gateway.openai_error import ApiError
from meshd.gateway.openapi import document
from meshd.gateway.protocols import OPENAI, PROTOCOLS, Dialect, dialect_of, error_body
from meshd.gateway.relay import Relay
from meshd.gateway.resolve import resolve
from meshd.gateway.routes import Route, RoutingTable
from meshd.gateway.table_watch import TableWatch
from meshd.gateway.telemetry import Stage, Telemetry
from meshd.gateway.upstreams import Upstreams

_ANTHROPIC_VERSION = "anthropic-version"
_CLIENT_LEFT = 499
_SERVER = f"meshd/{meshd.__version__}"
# Not on the request: aiohttp has typed keys for that only since 3.14.
_EXCHANGE: ContextVar[Exchange] = ContextVar("exchange")

_log = structlog.get_logger("meshd.gateway")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    watch: TableWatch,
    upstreams: Upstreams,
    relay: Relay,
    metrics: GatewayMetrics,
    telemetry: Telemetry,
    front: FrontDoor | None = None,
) -> web.Application:
    """The application, over parts that the caller starts and stops.

    :param front: what every request passes first.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        ready, report = readiness(watch, upstreams)
        if front is not None:
            report |= front.report()
        return _json(report, status=200 if ready else 503)

    async def described(_: web.Request) -> web.Response:
        return web.Response(body=document.encoded(), content_type="application/json")

    async def exposition(request: web.Request) -> web.Response:
        text, content_type = metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type})

    app = bare_app(metrics, front=front)
    add_inference(app, watch, relay, telemetry)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    app.router.add_get(document.PATH, described)
    return app


def bare_app(
    metrics: GatewayMetrics, *first: Any, front: FrontDoor | None = None
) -> web.Application:
    """An application without endpoints, whose errors have OpenAI's shape.

    :param first: middlewares that see a request before all else.
    :param front: likewise, with errors in that shape; None where somebody else has checked.
    """
    app = web.Application(middlewares=[*first, _observer(metrics, front)])
    app.on_response_prepare.append(_dresser(front))
    return app


def add_inference(
    app: web.Application,
    watch: TableWatch,
    relay: Relay,
    telemetry: Telemetry,
    hop: Callable[[web.Request], bool] = lambda _: False,
    member: Callable[[web.Request], str] = lambda _: "",
) -> None:
    """The models, and all that engines answer.

    :param hop: whether another gateway sent a request on. :param member: id of the node that sent
        it, "" for none.
    """

    async def inference(request: web.Request) -> web.StreamResponse:
        exchange = _EXCHANGE.get()
        exchange.hop = hop(request)
        traced = telemetry.request(request.headers, request.path, exchange.request_id)
        with exchange.pass_.running(), traced as trace:
            try:
                response = await relay.handle(
                    request, PROTOCOLS[request.path], exchange, trace, member(request)
                )
                trace.note(code=response.status)
                return response
            except Refuse as refusal:
                trace.note(code=refusal.error.status)
                raise
            finally:
                _tell(trace, exchange)
                exchange.pass_.charge(exchange.tokens.prompt + exchange.tokens.completion)

    def visible() -> list[Route]:
        allows = _EXCHANGE.get().pass_.allows
        return [route for route in _table(watch).routes if allows(route.model)]

    async def models(request: web.Request) -> web.Response:
        if _ANTHROPIC_VERSION in request.headers:
            return _json(model_list.anthropic_list(visible()))
        return _json(model_list.openai_list(visible()))

    async def model(request: web.Request) -> web.Response:
        table, name, allows = _table(watch), request.match_info["id"], _EXCHANGE.get().pass_.allows
        route = resolve(table, Ask(name), allowed=allows)
        if isinstance(route, Refused):
            raise Refuse(openai_error.refused(route, name, table, allows))
        if _ANTHROPIC_VERSION in request.headers:
            return _json(model_list.anthropic_model(route))
        return _json(model_list.openai_model(route))

    for path in PROTOCOLS:
        app.router.add_post(path, inference)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/models/{id:.+}", model)


def _tell(trace: Stage, exchange: Exchange) -> None:
    trace.note(
        model=exchange.model,
        prompt_tokens=exchange.tokens.prompt,
        completion_tokens=exchange.tokens.completion,
    )
    if exchange.first_token_s is not None:
        trace.note(first_token_s=exchange.first_token_s)


def _table(watch: TableWatch) -> RoutingTable:
    if watch.table is None:
        raise Refuse(openai_error.no_table())
    return watch.table


def readiness(watch: TableWatch, upstreams: Upstreams) -> tuple[bool, dict[str, Any]]:
    """Whether a request for some model could be served now, and why not."""
    table = watch.table
    reasons = [watch.error] if watch.error else []
    if table is None:
        return False, {"status": "unready", "reasons": reasons, "models": {}}
    ready = servable(table, upstreams.suspects)
    if not table.routes:
        reasons.append("the routing table lists no model")
    for route in table.routes:
        if route.model not in ready:
            state = "no engine answers" if route.state == "ready" else route.state.value
            detail = f" ({route.detail})" if route.detail else ""
            reasons.append(f"model {route.model}: {state}{detail}")
    report = {
        "status": "ready" if ready else "unready",
        "generation": table.generation,
        "reasons": reasons,
        "models": {route.model: route.model in ready for route in table.routes},
    }
    return bool(ready), report


def _observer(metrics: GatewayMetrics, front: FrontDoor | None) -> Any:
    # Bound once: what is not to be said costs next to nothing then.
    log = _log.bind()

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = Exchange(headers.request_id(request.headers))
        _EXCHANGE.set(exchange)
        code = 500
        try:
            response = await _answer(request, handler, exchange, front)
            code = response.status
            return response
        except (asyncio.CancelledError, ConnectionError):
            code = _CLIENT_LEFT
            raise
        finally:
            _record(metrics, log, request, exchange, code)

    return observe


async def _answer(
    request: web.Request, handler: Handler, exchange: Exchange, front: FrontDoor | None
) -> web.StreamResponse:
    try:
        if front is not None:
            if (answer := front.preflight(request)) is not None:
                return answer
            exchange.pass_ = front.admit(request)
        return await handler(request)
    except Refuse as refusal:
        response = _error(request, exchange, refusal.error)
        if refusal.lost and exchange.hop:
            response.headers[LOST] = "1"
        return response
    except web.HTTPException as error:
        return _http_error(request, exchange, error)
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        _log.exception("the gateway failed", request_id=exchange.request_id, path=request.path)
        if exchange.answering:
            # The client has a part of an answer, and must not take this for the rest of it.
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the answer was begun already") from None
        message = "The gateway failed; its log says why."
        return _error(request, exchange, ApiError(500, message, "server_error", code="internal"))


def error_response(
    error: ApiError, dialect: Dialect = OPENAI, request_id: str = ""
) -> web.Response:
    response = web.Response(
        status=error.status,
        body=error_body(dialect, error, request_id),
        content_type="application/json",
    )
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def _error(request: web.Request, exchange: Exchange, error: ApiError) -> web.Response:
    return error_response(error, dialect_of(request.path, request.headers), exchange.request_id)


def _http_error(request: web.Request, exchange: Exchange, error: web.HTTPException) -> web.Response:
    """The router's own refusals, in our shape."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.path[:200]} takes {allowed}, not {request.method[:20]}."
        response = _error(request, exchange, ApiError(405, message, code="method_not_allowed"))
        response.headers["Allow"] = allowed
        return response
    if error.status == 404:
        message = f"There is nothing at {request.path[:200]}."
        return _error(request, exchange, ApiError(404, message, code="not_found"))
    return _error(request, exchange, ApiError(error.status, error.reason))


def _record(
    metrics: GatewayMetrics, log: Any, request: web.Request, exchange: Exchange, code: int
) -> None:
    resource = request.match_info.route.resource
    endpoint = resource.canonical if resource else "other"
    inference = endpoint in PROTOCOLS
    model = exchange.model or (UNKNOWN_MODEL if inference else NO_MODEL)
    duration_s = exchange.elapsed_s()
    metrics.answered(
        Answered(
            model,
            endpoint,
            code,
            duration_s,
            inference=inference,
            hop=exchange.hop,
            first_token_s=exchange.first_token_s,
            queued_s=exchange.queued_s,
            tokens=exchange.tokens,
            key=exchange.key,
            quality=exchange.quality,
        )
    )
    # Never the body: prompts are the users' own.
    say = log.warning if code >= 500 or exchange.failure else log.debug
    say(
        "request",
        request_id=exchange.request_id,
        endpoint=endpoint,
        model=model,
        code=code,
        duration_s=round(duration_s, 4),
        failure=exchange.failure,
    )


def _dresser(
    front: FrontDoor | None,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def dress(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = _SERVER
        exchange = _EXCHANGE.get(None)
        if exchange is None:
            return
        exchange.answering = True
        response.headers[headers.REQUEST_ID] = exchange.request_id
        if name := dialect_of(request.path, request.headers).id_header:
            response.headers[name] = exchange.request_id
        if front is not None:
            front.dress(request, response, exchange.pass_)

    return dress


def _json(document: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(document), content_type="application/json"
    )
