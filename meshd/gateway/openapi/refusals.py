"""The answers that are errors: for each kind of operation, by status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from meshd.gateway import headers
from meshd.gateway.openapi.answer_headers import CHALLENGE, LIMITS, RETRY, refer
from meshd.gateway.openapi.known_errors import KNOWN_ERRORS, KnownError, Scope
from meshd.gateway.openapi.requests import Schema, either, ref
from meshd.gateway.protocols import ANTHROPIC, OPENAI, Dialect


@dataclass(frozen=True, slots=True)
class Refusing:
    """How one kind of operation refuses.

    :ivar name: of its answers among the document's components.
    :ivar schema: name of the errors' schema.
    :ivar dialect: of the examples.
    """

    name: str
    schema: str
    scopes: tuple[Scope, ...]
    dialect: Dialect = OPENAI


_ANY = (Scope.ANY, Scope.HEAD)
_INFERENCE = (*_ANY, Scope.TABLE, Scope.MODEL, Scope.INFERENCE)

OWN = Refusing("Own", "AnyError", _ANY)
LIST = Refusing("List", "AnyError", (*_ANY, Scope.TABLE))
NAMED = Refusing("Named", "AnyError", (*_ANY, Scope.TABLE, Scope.MODEL))
LIKE_OPENAI = Refusing("OpenAI", "OpenAIError", _INFERENCE)
LIKE_ANTHROPIC = Refusing("Anthropic", "AnthropicError", _INFERENCE, ANTHROPIC)


def inference(dialect: Dialect) -> Refusing:
    return LIKE_ANTHROPIC if dialect is ANTHROPIC else LIKE_OPENAI


def refer_all(how: Refusing) -> dict[str, Any]:
    """The refusals of an operation, by status."""
    return {
        str(status): {"$ref": f"#/components/responses/{_name(how, status)}"}
        for status in sorted(_by_status(how))
    }


def components() -> dict[str, Any]:
    """What `refer_all` refers to."""
    return {
        _name(how, status): refusal(how, status)
        for how in (OWN, LIST, NAMED, LIKE_OPENAI, LIKE_ANTHROPIC)
        for status in sorted(_by_status(how))
    }


def refusal(how: Refusing, status: int) -> dict[str, Any]:
    """One of them in full."""
    known = _by_status(how)[status]
    always = [headers.REQUEST_ID]
    sometimes: list[str] = []
    if how.dialect is ANTHROPIC and all(error.scope is not Scope.HEAD for error in known):
        always.append(ANTHROPIC.id_header)
    elif how.schema != "OpenAIError":
        sometimes.append(ANTHROPIC.id_header)
    if known[0].retry:
        always.append(RETRY)
    if status == HTTPStatus.UNAUTHORIZED:
        always.append(CHALLENGE)
    codes = ", ".join(f"`{error.code}`" for error in known)
    examples = {
        error.code: {
            "summary": error.means,
            "value": _dialect(how, error).error(error.example(), "req-4f1d"),
        }
        for error in known
    }
    return {
        "description": f"{HTTPStatus(status).phrase}: {codes}",
        "headers": refer(*sometimes, *LIMITS, always=always),
        "content": {"application/json": {"schema": _schema(how, known), "examples": examples}},
    }


def _dialect(how: Refusing, error: KnownError) -> Dialect:
    return OPENAI if error.scope is Scope.HEAD else how.dialect


def _schema(how: Refusing, known: list[KnownError]) -> Schema:
    schemas = {how.schema: ref(how.schema)}
    if how.dialect is not OPENAI and any(error.scope is Scope.HEAD for error in known):
        schemas["OpenAIError"] = ref("OpenAIError")
    return either(*schemas.values()) if len(schemas) > 1 else ref(how.schema)


def _name(how: Refusing, status: int) -> str:
    return f"{how.name}{status}"


def _by_status(how: Refusing) -> Mapping[int, list[KnownError]]:
    found: dict[int, list[KnownError]] = {}
    for error in KNOWN_ERRORS:
        if error.scope in how.scopes:
            found.setdefault(error.status, []).append(error)
    return found
