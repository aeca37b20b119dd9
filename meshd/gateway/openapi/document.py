"""Puts the OpenAPI 3.1 document together. Pure.

https://spec.openapis.org/oas/v3.1.0. Endpoints come from `PROTOCOLS`, errors from `KNOWN_ERRORS`:
an endpoint that is added there must be described here, or this fails.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

import meshd
from meshd.gateway import headers
from meshd.gateway.ask import SESSION_HEADERS
from meshd.gateway.client_limit import HEADERS as LIMIT_HEADERS
from meshd.gateway.openapi import answer_headers, quality_header, refusals
from meshd.gateway.openapi.answer_headers import LIMITS, MESH, STREAM, refer
from meshd.gateway.openapi.answers import ANSWERS
from meshd.gateway.openapi.refusals import LIST, NAMED, OWN, Refusing
from meshd.gateway.openapi.requests import REQUEST_PARTS, REQUESTS, Schema, ref
from meshd.gateway.protocols import ANTHROPIC, PROTOCOLS, Protocol

PATH = "/openapi.json"

_ABOUT = """\
One API for all models of a mesh. Engines answer most of it themselves: what they are sent and what
they say passes unchanged, so fields beyond the ones here are allowed everywhere.

Errors have the shape of the endpoint's protocol, OpenAI's or Anthropic's; what is refused before
its path is known, for broken HTTP or a head that is too large or too slow, has OpenAI's.

A stream that has begun ends with its protocol's last event (`data: [DONE]`, `response.completed`,
`message_stop`) or with an event that is an error, and never without either. Lines that begin with
`:` are comments.

HEAD is answered like GET. Browsers' preflight requests are answered as `gateway.origins` says.
A path that is not here is a 404 `not_found`, another method a 405 `method_not_allowed`.
"""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """:ivar request, answer, event: names of schemas; "" for the last where nothing is streamed."""

    operation: str
    summary: str
    request: str
    answer: str
    event: str = ""


_RERANK = ("Sort documents by how well they fit a query", "RerankRequest", "RerankAnswer")

_ENDPOINTS: Mapping[str, _Endpoint] = {
    "/v1/chat/completions": _Endpoint(
        "createChatCompletion",
        "Answer in a conversation",
        "ChatRequest",
        "ChatAnswer",
        "OpenAIEvent",
    ),
    "/v1/responses": _Endpoint(
        "createResponse",
        "Answer, by the Responses API",
        "ResponsesRequest",
        "ResponsesAnswer",
        "ResponsesEvent",
    ),
    "/v1/messages": _Endpoint(
        "createMessage",
        "Answer, by the Messages API",
        "MessagesRequest",
        "MessagesAnswer",
        "AnthropicEvent",
    ),
    "/v1/messages/count_tokens": _Endpoint(
        "countTokens", "Count a conversation's tokens", "MessagesRequest", "TokenCount"
    ),
    "/v1/completions": _Endpoint(
        "createCompletion",
        "Go on with a text",
        "CompletionRequest",
        "CompletionAnswer",
        "OpenAIEvent",
    ),
    "/v1/embeddings": _Endpoint(
        "createEmbeddings", "Embed texts", "EmbeddingsRequest", "EmbeddingsAnswer"
    ),
    "/v1/rerank": _Endpoint("rerank", *_RERANK),
    "/v1/reranking": _Endpoint("rerankByLongName", *_RERANK),
    "/rerank": _Endpoint("rerankWithoutVersion", *_RERANK),
    "/reranking": _Endpoint("rerankByLongNameWithoutVersion", *_RERANK),
}


_VERSION = "anthropic-version"
_OF_ALL = (headers.REQUEST_ID,)
_OF_INFERENCE = (headers.REQUEST_ID, headers.QUALITY, *SESSION_HEADERS, *LIMIT_HEADERS)
_PARAMETERS: Mapping[str, str] = {
    headers.REQUEST_ID: "Taken over if it is at most 128 of `A-Za-z0-9._:+/=-`, else replaced.",
    headers.QUALITY: "The least quality that is taken: `exact`, or bounds for shards of a model, "
    "such as `min_top1=0.97, max_kl=0.05`. The model's own bounds hold as well.",
    **dict.fromkeys(SESSION_HEADERS, "Which conversation this is: it keeps its engine."),
    **dict.fromkeys(LIMIT_HEADERS, "Seconds that the client itself waits."),
    _VERSION: "If it is there, the answer has Anthropic's shape.",
}
_SCHEMAS: Mapping[str, Schema] = {headers.QUALITY: quality_header.SCHEMA}


@functools.cache
def encoded() -> bytes:
    """The document as it is served."""
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """The document, made anew."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "meshd gateway",
            "version": meshd.__version__,
            "summary": "OpenAI's and Anthropic's APIs before a mesh of llama.cpp engines",
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        # The last one: a client of this machine needs no key, unless a proxy passes it on.
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "paths": {**{path: {"post": _inference(one)} for path, one in PROTOCOLS.items()}, **_own()},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
            "parameters": {
                name: {
                    "name": name,
                    "in": "header",
                    "description": text,
                    "schema": _SCHEMAS.get(name, {"type": "string"}),
                }
                for name, text in _PARAMETERS.items()
            },
            "headers": {**answer_headers.ALL},
            "responses": refusals.components(),
            "schemas": {**REQUESTS, **REQUEST_PARTS, **ANSWERS},
        },
    }


def _parameters(*names: str) -> list[Schema]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _inference(protocol: Protocol) -> dict[str, Any]:
    endpoint, dialect = _ENDPOINTS[protocol.path], protocol.dialect
    content: dict[str, Any] = {"application/json": {"schema": ref(endpoint.answer)}}
    description, named = "The engine's answer.", [*LIMITS, *MESH]
    if endpoint.event:
        # Before OpenAPI 3.2 there is no other place to say what one event looks like.
        content["text/event-stream"] = {"schema": ref(endpoint.event)}
        description = "The engine's answer; with `stream` as events, each as the schema says."
        named += STREAM
    always = (headers.REQUEST_ID, *filter(None, (dialect.id_header,)))
    return {
        "operationId": endpoint.operation,
        "summary": endpoint.summary,
        "tags": ["inference"],
        "parameters": _parameters(*_OF_INFERENCE),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref(endpoint.request)}},
        },
        "responses": {
            "200": {
                "description": description,
                "headers": refer(*named, always=always),
                "content": content,
            },
            **refusals.refer_all(refusals.inference(dialect)),
        },
    }


def _own() -> dict[str, Any]:
    """What engines have no part in."""
    a_model = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "As a request's `model`; slashes may be in it as such.",
        "schema": ref("ModelName"),
    }
    health = _get("health", "Whether the process lives", _json("Health"))
    ready = _get("readiness", "Whether some model can be served", _json("Readiness"))
    metrics = _get("metrics", "Prometheus metrics", _exposition())
    this = _get("document", "This document", _json("Document"))
    ready["responses"]["503"] = _unready()
    return {
        "/v1/models": {"get": _models("listModels", LIST, "ModelList", "AnthropicModelList")},
        "/v1/models/{id}": {
            "parameters": [a_model],
            "get": _models("getModel", NAMED, "Model", "AnthropicModel"),
        },
        "/healthz": {"get": {**health, "security": []}},
        "/readyz": {"get": ready},
        "/metrics": {"get": metrics},
        PATH: {"get": {**this, "security": []}},
    }


def _models(operation: str, how: Refusing, *schemas: str) -> dict[str, Any]:
    one = _get(operation, "The models", _json(*schemas), how)
    one["parameters"] = _parameters(*_OF_ALL, _VERSION)
    return {**one, "tags": ["models"]}


def _get(
    operation: str, summary: str, content: dict[str, Any], how: Refusing = OWN
) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "tags": ["operation"],
        "parameters": _parameters(*_OF_ALL),
        "responses": {
            "200": {
                "description": summary,
                "headers": refer(ANTHROPIC.id_header, *LIMITS, always=(headers.REQUEST_ID,)),
                "content": content,
            },
            **refusals.refer_all(how),
        },
    }


def _json(*schemas: str) -> dict[str, Any]:
    told = [ref(name) for name in schemas]
    return {"application/json": {"schema": told[0] if len(told) == 1 else {"anyOf": told}}}


def _exposition() -> dict[str, Any]:
    text = {"schema": {"type": "string"}}
    return {"text/plain": text, "application/openmetrics-text": text}


def _unready() -> dict[str, Any]:
    """`/readyz` says more than that it cannot."""
    busy = refusals.refusal(OWN, 503)
    return {
        "description": "No model can be served; `reasons` says why. Or an error.",
        "headers": refer(headers.REQUEST_ID, ANTHROPIC.id_header, answer_headers.RETRY, *LIMITS),
        "content": {
            "application/json": {
                **busy["content"]["application/json"],
                "schema": {"anyOf": [ref("Readiness"), ref("AnyError")]},
            }
        },
    }
