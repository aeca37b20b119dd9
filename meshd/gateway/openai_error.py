"""What goes wrong, as OpenAI's clients know it: message, type, param, code.

Every error is one of these until the moment it is sent; `protocols` has the other shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshd.gateway.answer_quality import shortcomings
from meshd.gateway.choice import Refusal, Refused
from meshd.gateway.routes import ModelState, RoutingTable
from meshd.quality import EXACT

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

    def document(self) -> dict[str, Any]:
        """OpenAI's error object, and what else an engine said."""
        return {
            **self.extra,
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }

    def body(self) -> bytes:
        """The JSON document."""
        return msgspec.json.encode({"error": self.document()})

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


def invalid_quality(why: str) -> ApiError:
    return ApiError(400, f"X-Mesh-Quality: {why}.", code="invalid_quality")


def engine_lost(model: str, how: str = "died while it answered") -> ApiError:
    return ApiError(
        502, f"The engine of the model `{_shown(model)}` {how}.", "server_error", code="engine_lost"
    )


def not_resumed(model: str, why: str) -> ApiError:
    """:param why: another engine could not go on with the stream, to follow "because"."""
    return engine_lost(model, f"died while it answered, and no other can go on, because {why}")


def engine_silent(model: str) -> ApiError:
    return ApiError(
        504,
        f"The engine of the model `{_shown(model)}` did not answer in time.",
        "server_error",
        code="engine_timeout",
    )


def unknown_model(
    model: str, table: RoutingTable, allowed: Callable[[str], bool] = lambda _: True
) -> ApiError:
    """:param allowed: whether the client may know of a model."""
    names = sorted(route.model for route in table.routes if allowed(route.model))
    return ApiError(
        404,
        f"The model `{_shown(model)}` does not exist here. Known models: {_listed(names)}.",
        param="model",
        code="model_not_found",
    )


def refused(
    choice: Refused,
    model: str,
    table: RoutingTable,
    allowed: Callable[[str], bool] = lambda _: True,
) -> ApiError:
    """What to tell a client whose request has no engine to go to.

    :param model: as the client wrote it. :param allowed: as for `unknown_model`.
    """
    name = _shown(choice.route.model if choice.route else model)
    match choice.reason:
        case Refusal.AMBIGUOUS:
            return ApiError(
                400,
                f"More than one model begins with `{name}`: {_listed(choice.candidates)}.",
                param="model",
                code="model_ambiguous",
            )
        case Refusal.NOT_ALLOWED:
            return ApiError(
                403,
                # Not the name behind an alias: the key may not know of it.
                f"Your API key is not for the model `{_shown(model)}`.",
                "permission_error",
                param="model",
                code="model_not_allowed",
            )
        case Refusal.INCAPABLE:
            return _incapable(choice, name)
        case Refusal.TOO_LONG:
            return ApiError(
                400,
                f"The prompt has {choice.prompt_tokens} tokens, the context of the model `{name}` "
                f"holds {choice.context}.",
                code="context_length_exceeded",
                extra={"n_prompt_tokens": choice.prompt_tokens, "n_ctx": choice.context},
            )
        case _ if choice.route is None:
            return unknown_model(model, table, allowed)
        case Refusal.QUALITY:
            quality = choice.quality or EXACT
            how = f"with quality {quality}" if not quality.exact else "exactly"
            return unavailable(
                f"The model `{name}` is not served {how} now. "
                f"{shortcomings(choice.below, quality)}.",
                "quality_unavailable",
                FAILED_RETRY_S,
            )
        case Refusal.FULL:
            return unavailable(
                f"The model `{name}` has all the requests it can take.",
                "model_overloaded",
                BUSY_RETRY_S,
            )
        case Refusal.UNREACHABLE:
            return unavailable(
                f"No engine of the model `{name}` can be reached; it is being restarted.",
                "model_unreachable",
                UNREACHABLE_RETRY_S,
            )
    route = choice.route
    # Targets may all be unready for a moment while the state still says ready.
    state = "not ready" if route.state is ModelState.READY else route.state.value
    detail = f": {route.detail}" if route.detail else ""
    return unavailable(
        f"The model `{name}` is {state}{detail}.",
        f"model_{state.replace(' ', '_')}",
        FAILED_RETRY_S if route.state is ModelState.FAILED else LOADING_RETRY_S,
    )


def _incapable(choice: Refused, name: str) -> ApiError:
    lacks = ", ".join(sorted(choice.lacks)) or "that"
    if choice.route is None:
        message = f"No model here does {lacks}."
    else:
        good_for = ", ".join(choice.route.capabilities)
        message = f"The model `{name}` does not do {lacks}; it is good for {good_for}."
    return ApiError(400, message, param="model", code="model_not_capable")


# llama-server answers 500 to much that only its client can put right; clients would try again.
_CLIENTS_FAULT = re.compile(
    r"Failed to parse |Field '|\[json\.exception\.|.* is required|Missing |Expected |Invalid |"
    r"Unsupported |unsupported |Unknown |Cannot |.* must (not )?be |.* input is not supported",
)


def from_upstream(status: int, text: bytes, *, in_stream: bool = False) -> ApiError:
    """An engine's error answer, whatever it wrote.

    The status is its own, except where it calls the client's fault its own.

    :param text: a document in llama-server's, OpenAI's or Anthropic's shape, or plain text.
    :param in_stream: `text` is the data of an event, in which the error may be all there is; its
        `code` then says the status.
    """
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    error = document.get("error") if isinstance(document, dict) else None
    if in_stream and error is None and isinstance(document, dict):
        error = document
    if not isinstance(error, dict):
        words = error if isinstance(error, str) else text.decode("utf-8", "replace")
        message = _shown(" ".join(words.split()), _MAX_UPSTREAM_TEXT)
        return ApiError(status, message or f"the engine answered {status}", _type_of(status))
    message = str(error.get("message") or f"the engine answered {status}")
    kind, code, param = error.get("type"), error.get("code"), error.get("param")
    if in_stream and isinstance(code, int) and 400 <= code < 600:
        status = code
    if kind == "not_supported_error":
        status, kind, code = 400, None, "model_not_capable"
    elif kind == "exceed_context_size_error":
        code = "context_length_exceeded"
    elif status == 500 and kind == "server_error" and _CLIENTS_FAULT.match(message):
        status, kind = 400, None
    return ApiError(
        status,
        message,
        str(kind or _type_of(status)),
        param if isinstance(param, str) else None,
        code if isinstance(code, str) else None,  # llama-server repeats the HTTP status here
        extra={key: value for key, value in error.items() if isinstance(key, str)},
    )


def _type_of(status: int) -> str:
    return "invalid_request_error" if status < 500 else "server_error"


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(names[:_MAX_LISTED]) or "none"
    return listed + (f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")


def _shown(text: str, limit: int = _MAX_ECHO) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
