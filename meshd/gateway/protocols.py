"""The endpoints' protocols: the shape of errors, and what ends a stream properly.

llama-server answers each of them itself, so requests and answers pass through as they are; only
what a gateway says of its own, and errors, must be put in a protocol's words here.

Shapes: OpenAI's API reference ("Errors", "Streaming"), Anthropic's ("Errors", "Streaming
messages"), and what the `openai` and `anthropic` clients make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from meshd.gateway.ask import KINDS, Kind
from meshd.gateway.openai_error import ApiError, from_upstream

_PROBLEM_STATUS = 502


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one family of clients is told things.

    :ivar error: an error as the body of an answer; the second argument is the request's id.
    :ivar event: the same as an event that ends a stream.
    :ivar ends: how the last event of a stream begins that is complete.
    :ivar fails: how an engine's event begins that may be an error.
    :ivar id_header: in which the client looks for the request's id, "" for our own only.
    """

    name: str
    error: Callable[[ApiError, str], dict[str, Any]]
    event: Callable[[ApiError, str], bytes]
    ends: tuple[bytes, ...]
    fails: tuple[bytes, ...]
    id_header: str = ""


@dataclass(frozen=True, slots=True)
class Protocol:
    """One endpoint. :ivar path: the engine's and the gateway's. :ivar kind: what it does."""

    path: str
    kind: Kind
    dialect: Dialect

    def error_body(self, error: ApiError, request_id: str = "") -> bytes:
        """The JSON document of an error's answer."""
        return error_body(self.dialect, error, request_id)

    def error_event(self, error: ApiError, request_id: str = "") -> bytes:
        """One whole server-sent event that says that the stream has failed."""
        return self.dialect.event(error, request_id)

    def ends(self, event: bytes) -> bool:
        """Whether this event says that the stream is complete."""
        return event.startswith(self.dialect.ends)

    def error_in(self, event: bytes) -> ApiError | None:
        """The error that an engine reports with this event, None when it is none."""
        if not event.startswith(self.dialect.fails):
            return None
        named = event.startswith((b"event: error", b"event:error", b"error:"))
        data = _data_of(event)
        if not named:
            try:
                document = msgspec.json.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return None
            if not isinstance(document, dict) or document.get("error") is None:
                return None
        return from_upstream(_PROBLEM_STATUS, data, in_stream=True)


def error_body(dialect: Dialect, error: ApiError, request_id: str = "") -> bytes:
    """As `Protocol.error_body`, for paths that are no inference endpoint."""
    return msgspec.json.encode(dialect.error(error, request_id))


def dialect_of(path: str, headers: Mapping[str, str]) -> Dialect:
    """In which words to answer a request, whatever its path."""
    protocol = PROTOCOLS.get(path)
    if protocol is not None:
        return protocol.dialect
    if path.startswith("/v1/messages") or "anthropic-version" in headers:
        return ANTHROPIC
    return OPENAI


def _data_of(event: bytes) -> bytes:
    """The event's data; its lines joined, as WHATWG HTML says."""
    lines = []
    for line in event.splitlines():
        name, colon, value = line.partition(b":")
        if colon and name in (b"data", b"error"):
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)


def _openai(error: ApiError, _: str) -> dict[str, Any]:
    return {"error": error.document()}


def _openai_event(error: ApiError, _: str) -> bytes:
    return b"data: " + msgspec.json.encode({"error": error.document()}) + b"\n\n"


def _responses_event(error: ApiError, _: str) -> bytes:
    """`openai`'s clients raise an exception for `error` only; the rest is what the API specifies.

    llama-server numbers no events, so there is no sequence to go on with.
    """
    document = {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "sequence_number": 0,
        "error": error.document(),
    }
    return b"event: error\ndata: " + msgspec.json.encode(document) + b"\n\n"


_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def _anthropic(error: ApiError, request_id: str) -> dict[str, Any]:
    """`code` and what else is known stays; clients skip what they do not know."""
    kind = _ANTHROPIC_TYPES.get(error.status)
    if kind is None:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
    known = {key: value for key, value in error.document().items() if value is not None}
    inner = {**known, "type": kind, "message": _anthropic_message(error)}
    return {"type": "error", "error": inner, "request_id": request_id or None}


def _anthropic_message(error: ApiError) -> str:
    prompt, most = error.extra.get("n_prompt_tokens"), error.extra.get("n_ctx")
    if error.code == "context_length_exceeded" and prompt is not None and most is not None:
        # Agents know these words, and shorten the conversation.
        return f"prompt is too long: {prompt} tokens > {most} maximum"
    return error.message


def _anthropic_event(error: ApiError, request_id: str) -> bytes:
    return b"event: error\ndata: " + msgspec.json.encode(_anthropic(error, request_id)) + b"\n\n"


_FAILS = (b'data: {"error"', b'data:{"error"', b"event: error", b"event:error", b"error:")

OPENAI = Dialect(
    "openai", _openai, _openai_event, ends=(b"data: [DONE]", b"data:[DONE]"), fails=_FAILS
)
# `failed` is an end that the engine itself declares: its event says why.
RESPONSES = Dialect(
    "responses",
    _openai,
    _responses_event,
    ends=(
        b"event: response.completed",
        b"event: response.incomplete",
        b"event: response.failed",
        b"data: [DONE]",
    ),
    fails=_FAILS,
)
ANTHROPIC = Dialect(
    "anthropic",
    _anthropic,
    _anthropic_event,
    ends=(b"event: message_stop",),
    fails=_FAILS,
    id_header="request-id",
)

_DIALECTS: Mapping[str, Dialect] = {
    "/v1/responses": RESPONSES,
    "/v1/messages": ANTHROPIC,
    "/v1/messages/count_tokens": ANTHROPIC,
}

PROTOCOLS: Mapping[str, Protocol] = {
    path: Protocol(path, kind, _DIALECTS.get(path, OPENAI)) for path, kind in KINDS.items()
}
"""By path: all endpoints that engines answer."""

CHAT = PROTOCOLS["/v1/chat/completions"]
