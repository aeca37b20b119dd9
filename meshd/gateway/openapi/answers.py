"""The bodies of answers: the engines' as far as clients rely on them, and the gateway's own."""

from __future__ import annotations

from collections.abc import Mapping

from meshd.gateway.answer_quality import EXACT, SHARD
from meshd.gateway.openapi.requests import (
    BOOLEAN,
    COUNT,
    NUMBER,
    OBJECT,
    STRING,
    Schema,
    either,
    ref,
    several,
)
from meshd.gateway.routes import ModelState

_NULL: Schema = {"type": "null"}


def _object(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": [*required], "properties": properties}


def _all(**properties: Schema) -> Schema:
    return _object(*properties, **properties)


def _word(text: str) -> Schema:
    return {"const": text}


def _or_null(schema: Schema) -> Schema:
    return either(schema, _NULL)


def _event(*data: Schema) -> Schema:
    """One of a stream's events, as WHATWG HTML reads them; comments are none."""
    told = data[0] if len(data) == 1 else {"anyOf": [*data]}
    return {"type": "object", "required": ["data"], "properties": {"event": STRING, "data": told}}


def _holds(document: Schema) -> Schema:
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": document}


_OPENAI_USAGE = _object("prompt_tokens", prompt_tokens=COUNT, total_tokens=COUNT)
_ERROR_WORDS: Mapping[str, Schema] = {
    "message": STRING,
    "type": STRING,
    "param": _or_null(STRING),
    "code": _or_null(STRING),
}

ANSWERS: Mapping[str, Schema] = {
    "ChatAnswer": _object(
        "id", "object", "created", "model", "choices", "usage",
        id=STRING,
        object=_word("chat.completion"),
        created=COUNT,
        model=STRING,
        choices=several(
            _object(
                "index", "message", "finish_reason",
                index=COUNT,
                message=_object("role", role=STRING, content=_or_null(STRING)),
                finish_reason=_or_null(STRING),
            )
        ),
        usage=_OPENAI_USAGE,
    ),
    "CompletionAnswer": _object(
        "id", "object", "created", "model", "choices", "usage",
        id=STRING,
        object=_word("text_completion"),
        created=COUNT,
        model=STRING,
        choices=several(
            _object("index", "text", index=COUNT, text=STRING, finish_reason=_or_null(STRING))
        ),
        usage=_OPENAI_USAGE,
    ),
    "EmbeddingsAnswer": _object(
        "object", "data", "model", "usage",
        object=_word("list"),
        model=STRING,
        data=several(
            _object("index", "embedding", index=COUNT, embedding=either(several(NUMBER), STRING))
        ),
        usage=_OPENAI_USAGE,
    ),
    "RerankAnswer": _object(
        "results",
        model=STRING,
        results=several(_all(index=COUNT, relevance_score=NUMBER)),
    ),
    "ResponsesAnswer": _object(
        "id", "object", "status", "output",
        id=STRING,
        object=_word("response"),
        status=STRING,
        output=several(_object("type", type=STRING)),
    ),
    "MessagesAnswer": _object(
        "id", "type", "role", "content", "model", "stop_reason", "usage",
        id=STRING,
        type=_word("message"),
        role=_word("assistant"),
        content=several(ref("Part")),
        model=STRING,
        stop_reason=_or_null(STRING),
        usage=_object("output_tokens", input_tokens=COUNT, output_tokens=COUNT),
    ),
    "TokenCount": _all(input_tokens=COUNT),
    "OpenAIEvent": _event(
        _word("[DONE]"),
        {**_word("null"), "description": "llama-server's, between the answers to two prompts."},
        _holds(either(_object("choices", choices=several(OBJECT)), ref("OpenAIError"))),
    ),
    "ResponsesEvent": _event(_holds(_object("type", type=STRING))),
    "AnthropicEvent": _event(
        _holds(either(ref("AnthropicError"), _object("type", type={"not": {"const": "error"}})))
    ),
    "Replica": {
        **_object(
            "node", "quality", "context",
            node=STRING,
            quality={"enum": [EXACT, SHARD]},
            context=COUNT,
            shard=STRING,
            experts=COUNT,
            experts_all=COUNT,
            measured=several(
                _all(domain=STRING, top1=NUMBER, perplexity_ratio=NUMBER, kl=NUMBER)
            ),
        ),
        "description": "An engine that serves the model now. Of a `shard` all is there: how many "
        "experts of each layer it keeps, and what was measured beside the whole model, by kind "
        "of text: share of tokens that both find likeliest, perplexity by the model's, and mean "
        "divergence in nats.",
    },
    "Mesh": {
        **_all(
            state={"enum": [state.value for state in ModelState]},
            detail=STRING,
            context=COUNT,
            quality=STRING,
            capabilities=several(STRING),
            aliases=several(STRING),
            replicas=several(ref("Replica")),
        ),
        "description": "What the mesh knows of a model. `context`: tokens, 0 when not known. "
        "`quality`: what was asked for, `exact` or bounds.",
    },
    "Model": _all(
        id=STRING,
        object=_word("model"),
        created=COUNT,
        owned_by=STRING,
        mesh=ref("Mesh"),
    ),
    "ModelList": _all(object=_word("list"), data=several(ref("Model"))),
    "AnthropicModel": _all(
        type=_word("model"),
        id=STRING,
        display_name=STRING,
        created_at={"type": "string", "format": "date-time"},
        lifecycle=_word("active"),
        max_input_tokens=_or_null(COUNT),
        mesh=ref("Mesh"),
    ),
    "AnthropicModelList": _all(
        data=several(ref("AnthropicModel")),
        has_more=BOOLEAN,
        first_id=_or_null(STRING),
        last_id=_or_null(STRING),
    ),
    "Health": _all(status=_word("ok")),
    "Readiness": {
        **_object(
            "status", "reasons", "models", "clients",
            status={"enum": ["ready", "unready"]},
            generation=COUNT,
            reasons=several(STRING),
            models={"type": "object", "additionalProperties": BOOLEAN},
            clients=_all(served=STRING, errors=several(STRING)),
        ),
        "description": "`models`: whether each can be served now. `clients`: who is let in.",
    },
    "OpenAIError": {
        **_all(error=_all(**_ERROR_WORDS)),
        "description": "An engine's own errors have further fields.",
    },
    "AnthropicError": _all(
        type=_word("error"),
        error=_object("type", "message", type=STRING, message=STRING, code=STRING),
        request_id=_or_null(STRING),
    ),
    "AnyError": either(ref("OpenAIError"), ref("AnthropicError")),
    "Document": OBJECT,
}  # fmt: skip
