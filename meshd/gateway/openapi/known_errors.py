"""Every error that the gateway itself answers a client with: status, code and meaning.

A test reads the gateway's source for the codes in it and compares. Engines have errors of their
own beside these; they keep their status and seldom have a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from meshd.gateway.openai_error import ApiError


class Scope(StrEnum):
    """Which requests may be answered so."""

    ANY = "any"
    HEAD = "head"  # any, also before its path is known: then in OpenAI's shape
    TABLE = "table"  # that need the routing table
    MODEL = "model"  # that name a model
    INFERENCE = "inference"  # that engines answer
    NOWHERE = "nowhere"  # for which there is no operation


@dataclass(frozen=True, slots=True)
class KnownError:
    """:ivar means: for people, without the full stop."""

    scope: Scope
    status: int
    code: str
    means: str

    @property
    def retry(self) -> bool:
        """Whether the answer has a Retry-After."""
        return self.status in (429, 503)

    def example(self) -> ApiError:
        """Such an error, with its meaning as its message."""
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        param = "model" if self.code in _ABOUT_MODEL else None
        return ApiError(self.status, f"{self.means}.", kind, param, self.code)


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    421: "permission_error",
    429: "requests",
}
_ABOUT_MODEL = frozenset(
    {
        "invalid_type",
        "missing_required_parameter",
        "model_ambiguous",
        "model_not_allowed",
        "model_not_capable",
        "model_not_found",
    }
)


def _any(status: int, code: str, means: str) -> KnownError:
    return KnownError(Scope.ANY, status, code, means)


def _head(status: int, code: str, means: str) -> KnownError:
    return KnownError(Scope.HEAD, status, code, means)


def _inference(status: int, code: str, means: str) -> KnownError:
    return KnownError(Scope.INFERENCE, status, code, means)


KNOWN_ERRORS: tuple[KnownError, ...] = (
    _head(400, "invalid_http", "The request is not valid HTTP"),
    _any(401, "invalid_api_key", "The API key is missing, unknown or expired"),
    _any(403, "no_api_keys", "There are no API keys, so only this machine is served"),
    _any(403, "origin_not_allowed", "The web page that asks is none of the allowed ones"),
    _head(408, "timeout", "The request's head, or a piece of its body, took too long"),
    _head(415, "unknown_encoding", "The body is packed in a way that is not known"),
    _any(417, "expectation_failed", "Only `Expect: 100-continue` can be met"),
    _any(421, "unknown_host", "The `Host` header names another machine"),
    _head(431, "headers_too_large", "A line of the head has over 8190 bytes, or it has too many"),
    _any(500, "internal", "The gateway failed; its log says why"),
    _head(503, "gateway_overloaded", "There is no room for more connections, or more bodies"),
    KnownError(Scope.TABLE, 503, "not_ready", "The gateway has no routing table yet"),
    KnownError(Scope.MODEL, 400, "model_ambiguous", "Several models' names begin so"),
    KnownError(Scope.MODEL, 403, "model_not_allowed", "The API key is not for this model"),
    KnownError(
        Scope.MODEL, 404, "model_not_found", "No such model; the message lists those there are"
    ),
    KnownError(Scope.NOWHERE, 404, "not_found", "There is no such path"),
    KnownError(Scope.NOWHERE, 405, "method_not_allowed", "The `Allow` header says what is"),
    _inference(400, "invalid_json", "The body is not one JSON object, or nested too deeply"),
    _inference(400, "invalid_body", "The body is broken HTTP, or its encoding is"),
    _inference(400, "missing_required_parameter", "`model` is missing"),
    _inference(400, "invalid_type", "`model` is not a string"),
    _inference(400, "invalid_value", "`tool_choice` names what is none of the tools"),
    _inference(400, "invalid_quality", "`X-Mesh-Quality` is neither `exact` nor bounds"),
    _inference(400, "model_not_capable", "The model lacks what the request needs"),
    _inference(
        400, "context_length_exceeded", "`n_prompt_tokens` are too many for the context, `n_ctx`"
    ),
    _inference(413, "request_too_large", "The body is larger than `gateway.max_body_bytes`"),
    _inference(429, "rate_limit_exceeded", "The API key has used up what it may"),
    _inference(502, "engine_lost", "The engine died before the answer was complete"),
    _inference(503, "stopping", "The gateway is being stopped"),
    _inference(503, "model_loading", "The model is being loaded; `eta_s` says how long it takes"),
    _inference(503, "model_waiting", "The model waits for memory; the message says how much"),
    _inference(503, "model_failed", "The model does not start; the message says why"),
    _inference(503, "model_not_ready", "No engine of the model takes requests now"),
    _inference(503, "model_drained", "The only nodes that could serve it are being drained"),
    _inference(
        503, "quality_unavailable", "Only shards below `X-Mesh-Quality` are there; see by how much"
    ),
    _inference(503, "model_unreachable", "No engine of the model can be reached"),
    _inference(503, "model_overloaded", "The model has all the requests that it can take"),
    _inference(504, "engine_timeout", "The engine did not answer in time"),
)

BETWEEN_NODES = frozenset({"full", "model_moved"})
"""Codes that only the gateways of other nodes are told."""
