"""Errors in the shape that OpenAI's clients read: message, type, param, code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshd.gateway.choice import Refusal, Refused
from meshd.gateway.routes import ModelState, RoutingTable

_MAX_ECHO = 200
_MAX_LISTED = 50
_MAX_UPSTREAM_TEXT = 2000

LOADING_RETRY_S = 5
FAILED_RETRY_S = 30
UNREACHABLE_RETRY_S = 2
BUSY_RETRY_S = 1


@dataclass(frozen=True, slots=True)
class ApiError:
    """:ivar retry_after_s: for a Retry-After header, None where trying again is no use."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self) -> bytes:
        """The JSON document."""
        error = {
            **self.extra,
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def event(self) -> bytes:
        """The same as one server-sent event, as OpenAI's clients expect it inside a stream."""
        return b"data: " + self.body() + b"\n\n"


def unavailable(message: str, code: str, retry_after_s: int) -> ApiError:
    return ApiError(503, message, "server_error", code=code, retry_after_s=retry_after_s)


def no_table() -> ApiError:
    return unavailable(
        "The gateway has no routing table yet; meshd has not written it.",
        "not_ready",
        LOADING_RETRY_S,
    )


def stopping() -> ApiError:
    return unavailable("The gateway is being stopped.", "stopping", UNREACHABLE_RETRY_S)


def moved(model: str) -> ApiError:
    """To a gateway whose table is older than ours, or newer."""
    return unavailable(
        f"The model `{_shown(model)}` is not served by this node now.",
        "model_moved",
        UNREACHABLE_RETRY_S,
    )


def engine_lost(model: str, how: str = "died while it answered") -> ApiError:
    return ApiError(
        502, f"The engine of the model `{_shown(model)}` {how}.", "server_error", code="engine_lost"
    )


def engine_silent(model: str) -> ApiError:
    return ApiError(
        504,
        f"The engine of the model `{_shown(model)}` did not answer in time.",
        "server_error",
        code="engine_timeout",
    )


def unknown_model(model: str, table: RoutingTable) -> ApiError:
    names = sorted(route.model for route in table.routes)
    listed = ", ".join(names[:_MAX_LISTED]) or "none"
    if len(names) > _MAX_LISTED:
        listed += f", and {len(names) - _MAX_LISTED} more"
    return ApiError(
        404,
        f"The model `{_shown(model)}` does not exist here. Known models: {listed}.",
        param="model",
        code="model_not_found",
    )


def refused(choice: Refused, model: str, table: RoutingTable) -> ApiError:
    """What to tell a client whose request has no engine to go to."""
    route = choice.route
    if route is None:
        return unknown_model(model, table)
    name = _shown(route.model)
    if choice.reason is Refusal.INCAPABLE:
        return ApiError(
            400,
            f"The model `{name}` does not do that; it is good for {', '.join(route.capabilities)}.",
            param="model",
            code="model_not_capable",
        )
    if choice.reason is Refusal.FULL:
        return unavailable(
            f"The model `{name}` has all the requests it can take.",
            "model_overloaded",
            BUSY_RETRY_S,
        )
    if choice.reason is Refusal.UNREACHABLE:
        return unavailable(
            f"No engine of the model `{name}` can be reached; it is being restarted.",
            "model_unreachable",
            UNREACHABLE_RETRY_S,
        )
    # Targets may all be unready for a moment while the state still says ready.
    state = "not ready" if route.state is ModelState.READY else route.state.value
    detail = f": {route.detail}" if route.detail else ""
    return unavailable(
        f"The model `{name}` is {state}{detail}.",
        f"model_{state.replace(' ', '_')}",
        FAILED_RETRY_S if route.state is ModelState.FAILED else LOADING_RETRY_S,
    )


def from_upstream(status: int, text: bytes) -> ApiError:
    """An engine's error answer, whatever it wrote, in OpenAI's shape and with its own status."""
    fallback_type = "invalid_request_error" if status < 500 else "server_error"
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        words = error if isinstance(error, str) else text.decode("utf-8", "replace")
        message = _shown(" ".join(words.split()), _MAX_UPSTREAM_TEXT)
        return ApiError(status, message or f"the engine answered {status}", fallback_type)
    kind = str(error.get("type") or fallback_type)
    code = error.get("code")
    if not isinstance(code, str):  # llama-server repeats the HTTP status here
        code = "context_length_exceeded" if kind == "exceed_context_size_error" else None
    param = error.get("param")
    return ApiError(
        status,
        str(error.get("message") or f"the engine answered {status}"),
        kind,
        param if isinstance(param, str) else None,
        code,
        extra={key: value for key, value in error.items() if isinstance(key, str)},
    )


def _shown(text: str, limit: int = _MAX_ECHO) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
