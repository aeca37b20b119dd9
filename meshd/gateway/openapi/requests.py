"""The bodies of requests, as far as they are documented.

The gateway itself wants one JSON object with a `model`. All else is passed to the engine as it is,
known here or not, and the engine judges it. Fields: OpenAI's and Anthropic's API references, and
llama-server's README.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def several(item: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": item, **more}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas]}


def _between(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _told(schema: Schema, text: str) -> Schema:
    return {**schema, "description": text}


def _body(text: str, required: tuple[str, ...], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "description": f"{text} Fields that are not listed are passed to the engine, too.",
        "required": ["model", *required],
        "properties": {"model": ref("ModelName"), **properties},
        "additionalProperties": True,
    }


_STREAM = _told(BOOLEAN, "Whether to answer in server-sent events.")
_SAMPLING: Mapping[str, Schema] = {
    "temperature": _between(0, 2),
    "top_p": _between(0, 1),
    "top_k": _told(COUNT, "llama-server's; 0 for no limit."),
    "min_p": _told(_between(0, 1), "llama-server's."),
    "seed": _told(COUNT, "The same seed, engine and slots give the same answer."),
}
_OPENAI_SAMPLING: Mapping[str, Schema] = {
    **_SAMPLING,
    "presence_penalty": _between(-2, 2),
    "frequency_penalty": _between(-2, 2),
    "stop": either(STRING, several(STRING)),
    "stream": _STREAM,
    "stream_options": {
        "type": "object",
        "properties": {
            "include_usage": _told(BOOLEAN, "Whether the last chunk tells what was used.")
        },
    },
}
_TOOLS = _told(several(OBJECT), "Functions that the model may call; each with a JSON schema.")

REQUESTS: Mapping[str, Schema] = {
    "ChatRequest": _body(
        "A conversation.",
        ("messages",),
        messages=several(ref("ChatMessage"), minItems=1),
        max_completion_tokens=COUNT,
        max_tokens=_told(COUNT, "The older name of `max_completion_tokens`."),
        tools=_TOOLS,
        tool_choice=either({"enum": ["none", "auto", "required"]}, OBJECT),
        parallel_tool_calls=BOOLEAN,
        response_format=_told(
            {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
            },
            "Makes the answer JSON, or JSON of one schema.",
        ),
        logprobs=BOOLEAN,
        top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
        prompt_cache_key=_told(STRING, "Requests with the same key go to the same engine."),
        session_id=_told(STRING, "Likewise; before `prompt_cache_key`."),
        user=_told(STRING, "Whose it is: decides where engines serve shards of a model."),
        chat_template_kwargs=_told(OBJECT, "llama-server's: for the model's chat template."),
        **_OPENAI_SAMPLING,
    ),
    "CompletionRequest": _body(
        "A text to go on with.",
        ("prompt",),
        prompt=either(STRING, several(STRING, minItems=1), several(COUNT, minItems=1)),
        max_tokens=COUNT,
        logprobs={"type": "integer", "minimum": 0, "maximum": 5},
        **_OPENAI_SAMPLING,
    ),
    "EmbeddingsRequest": _body(
        "Texts to embed.",
        ("input",),
        input=either(STRING, several(STRING, minItems=1), several(COUNT, minItems=1)),
        encoding_format={"enum": ["float", "base64"]},
    ),
    "RerankRequest": _body(
        "Documents to sort by how well they fit a query.",
        ("query", "documents"),
        query=STRING,
        documents=several(STRING, minItems=1),
        top_n={"type": "integer", "minimum": 1},
    ),
    "ResponsesRequest": _body(
        "OpenAI's Responses API. Nothing is stored: `previous_response_id` is not known.",
        ("input",),
        input=either(STRING, several(OBJECT)),
        instructions=STRING,
        max_output_tokens=COUNT,
        tools=_TOOLS,
        stream=_STREAM,
        prompt_cache_key=STRING,
        **_SAMPLING,
    ),
    "MessagesRequest": _body(
        "Anthropic's Messages API.",
        ("messages",),
        messages=several(ref("AnthropicMessage"), minItems=1),
        max_tokens=COUNT,
        system=either(STRING, several(ref("Part"))),
        stop_sequences=several(STRING),
        tools=_TOOLS,
        tool_choice=OBJECT,
        thinking=OBJECT,
        metadata=OBJECT,
        stream=_STREAM,
        **_SAMPLING,
    ),
}

REQUEST_PARTS: Mapping[str, Schema] = {
    "ModelName": _told(
        STRING,
        "A name or an alias from `/v1/models`, the beginning of only one of them, or `auto` for "
        "the warmest model that can do what the request needs.",
    ),
    "Part": _told(
        {"type": "object", "required": ["type"], "properties": {"type": STRING}},
        "A piece of a message: text, a picture, sound, a tool's call or its result.",
    ),
    "ChatMessage": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": either(STRING, several(ref("Part")), {"type": "null"}),
            "tool_calls": several(OBJECT),
            "tool_call_id": STRING,
        },
    },
    "AnthropicMessage": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["user", "assistant"]},
            "content": either(STRING, several(ref("Part"))),
        },
    },
}
