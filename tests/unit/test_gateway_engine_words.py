"""What the engine is told, where it does not understand what the client said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.gateway.ask import KINDS, read
from meshd.gateway.engine_words import in_engine_words

RESPONSES = "/v1/responses"
SCHEMA = {"type": "object", "properties": {"n": {"type": "number", "maximum": 1.5}}}


def sent(path: str, **fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "m", **fields}).encode()
    told: dict[str, Any] = json.loads(in_engine_words(path, body, read(path, body)))
    return told


def test_a_form_is_told_in_the_words_of_chat_completions() -> None:
    text = {"format": {"type": "json_schema", "name": "p", "schema": SCHEMA, "strict": True}}
    told = sent(RESPONSES, text=text, input="x")
    schema = {"name": "p", "schema": SCHEMA, "strict": True}
    assert told["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert told["text"] == text
    told = sent(RESPONSES, text={"format": {"type": "json_object"}, "verbosity": "low"})
    assert told["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    "text",
    [None, "x", 7, [], {}, {"format": None}, {"format": {"type": "text"}}, {"format": {"type": 7}},
     {"verbosity": "low"}],
)  # fmt: skip
def test_nothing_is_said_of_what_is_no_form(text: Any) -> None:
    assert "response_format" not in sent(RESPONSES, text=text)


def test_a_form_and_a_tool_are_told_together() -> None:
    tools = [{"type": "function", "name": name} for name in ("look", "find")]
    choice = {"type": "function", "name": "find"}
    text = {"format": {"type": "json_object"}}
    told = sent(RESPONSES, text=text, tools=tools, tool_choice=choice)
    assert (told["tools"], told["tool_choice"]) == (tools[1:], "required")
    assert told["response_format"] == {"type": "json_object"}


def test_all_other_bodies_keep_their_bytes() -> None:
    text = b'{ "model": "m", "text": {"format": {"type": "json_object"}}, "tool_choice":"none" }'
    plain = b'{ "model": "m", "x": 1.50e0 }'
    for path in KINDS:
        assert in_engine_words(path, plain, read(path, plain)) is plain
        if path != RESPONSES:
            assert in_engine_words(path, text, read(path, text)) is text
