"""The headers of answers, each described once, and how an answer refers to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshd.gateway import headers
from meshd.gateway.protocols import ANTHROPIC

RETRY = "Retry-After"
CHALLENGE = "WWW-Authenticate"
_REQUIRED = "required-"


def _text(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}}


def _number(description: str, minimum: int) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "integer", "minimum": minimum}}


LIMITS: Mapping[str, Any] = {
    name: header
    for kind in ("Requests", "Tokens")
    for name, header in (
        (f"X-RateLimit-Limit-{kind}", _number(f"{kind} a period, if the key is limited so.", 0)),
        (f"X-RateLimit-Remaining-{kind}", _number(f"{kind} left of them.", 0)),
        (f"X-RateLimit-Reset-{kind}", _text("Until all are there again, such as `6m0s`.")),
    )
}
MESH: Mapping[str, Any] = {
    headers.NODE: _text("The node whose engine answers."),
    headers.MODEL: _text("The model's own name."),
    headers.QUALITY: _text(
        "`exact`, or of a shard what it keeps and what it was measured to lose at worst: "
        "`shard; experts=12/16; top1=0.962; perplexity=1.031; kl=0.040`."
    ),
    headers.RESUMED: _text("Whether more than one engine made the answer.", enum=["yes", "no"]),
    headers.ATTEMPTS: _number("How many engines were asked until one answered.", 1),
}
STREAM: Mapping[str, Any] = {
    "X-Accel-Buffering": _text("`no`: a proxy is to pass on each event at once.", enum=["no"]),
}
_MOSTLY: Mapping[str, Any] = {
    ANTHROPIC.id_header: _text("The request's id, where Anthropic's clients look for it."),
    RETRY: _number("Seconds after which to try again.", 1),
}
_ALWAYS: Mapping[str, Any] = {
    **_MOSTLY,
    headers.REQUEST_ID: _text("The request's id: the client's own, if it sent a usable one."),
    CHALLENGE: _text("How to send a key."),
}

ALL: Mapping[str, Any] = {
    **LIMITS,
    **MESH,
    **STREAM,
    **_MOSTLY,
    **{_REQUIRED + name: {**header, "required": True} for name, header in _ALWAYS.items()},
}
"""As components of the document."""


def refer(*names: str, always: Iterable[str] = ()) -> dict[str, Any]:
    """An answer's headers. :param always: those of them that no such answer lacks."""
    return {
        **{name: {"$ref": f"#/components/headers/{name}"} for name in names},
        **{name: {"$ref": f"#/components/headers/{_REQUIRED}{name}"} for name in always},
    }
