"""Which tools an answer may call, in the words that llama-server understands. Pure.

llama-server 0.7 (measured) takes a choice that names tools for "auto", and in Messages for "any".
So the tools that were not chosen are left out, and of those that are left one is required.

Shapes: `tool_choice` in OpenAI's references of Chat Completions and Responses, and in Anthropic's
of Messages. What is none of these is left to the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from meshd.gateway.request_body import BadBodyError

MESSAGES = "/v1/messages"

_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """:ivar must_call: the answer has to be a call. :ivar names: of the only tools that may be
    called; None for all of them.
    """

    must_call: bool = False
    names: frozenset[str] | None = None


ALL = ToolChoice()
_REQUIRED = ToolChoice(must_call=True)


def tool_choice(path: str, raw: msgspec.Raw) -> ToolChoice:
    """:param path: of the endpoint. :param raw: the body's `tool_choice`."""
    if bytes(raw) == b'"required"':
        return _REQUIRED if path != MESSAGES else ALL
    if bytes(memoryview(raw)[:1]) != b"{":
        return ALL
    try:
        choice = msgspec.json.decode(raw)
    except _NOT_JSON:
        return ALL
    kind = choice.get("type")
    if path == MESSAGES:
        if kind == "any":
            return _REQUIRED
        return _one(choice) if kind == "tool" else ALL
    if kind == "function":
        return _one(choice)
    if kind == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        return _some(inner) if isinstance(inner, dict) else ALL
    return ALL


def _one(choice: Mapping[str, Any]) -> ToolChoice:
    name = _name(choice)
    return ToolChoice(must_call=True, names=frozenset({name})) if name else ALL


def _some(choice: Mapping[str, Any]) -> ToolChoice:
    tools = choice.get("tools")
    names = [_name(tool) for tool in tools] if isinstance(tools, list) else []
    if not names or not all(names):
        return ALL
    return ToolChoice(choice.get("mode") == "required", frozenset(names))


def _name(tool: object) -> str:
    """Of a tool, or of a choice: inside of `function` in Chat Completions, else beside `type`."""
    if not isinstance(tool, dict):
        return ""
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else ""


def with_chosen_tools(path: str, body: bytes, choice: ToolChoice) -> bytes:
    """The same body with the chosen tools only; every other value keeps its very bytes.

    :raises BadBodyError: a tool is chosen that is not there.
    """
    assert choice.names is not None
    try:
        fields = _fields.decode(body)
        tools = {_name(msgspec.json.decode(raw)): raw for raw in _list.decode(fields["tools"])}
        said = msgspec.json.decode(fields["tool_choice"])
    except (*_NOT_JSON, KeyError):
        return body  # not what the endpoint takes; the engine will say so
    if missing := choice.names - set(tools):
        raise BadBodyError(
            f"tool_choice names {', '.join(sorted(missing))}, which is none of the tools",
            param="tool_choice",
            code="invalid_value",
        )
    chosen = [raw for name, raw in tools.items() if name in choice.names]
    fields["tools"] = msgspec.Raw(msgspec.json.encode(chosen))
    word: object = "required" if choice.must_call else "auto"
    if path == MESSAGES:
        word = {**{key: value for key, value in said.items() if key != "name"}, "type": "any"}
    fields["tool_choice"] = msgspec.Raw(msgspec.json.encode(word))
    return msgspec.json.encode(fields)
