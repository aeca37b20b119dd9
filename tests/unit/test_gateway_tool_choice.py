"""A choice of tools, in the words that the engine understands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.gateway.ask import KINDS, Ask, read
from meshd.gateway.request_body import BadBodyError
from meshd.gateway.tool_choice import ToolChoice, with_chosen_tools

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
NAMES = ("look", "find", "tell")
TOOLS: dict[str, list[Any]] = {
    CHAT: [{"type": "function", "function": {"name": name}} for name in NAMES],
    MESSAGES: [{"name": name, "input_schema": {"type": "object"}} for name in NAMES],
    RESPONSES: [{"type": "function", "name": name} for name in NAMES],
}


def body(path: str, choice: Any, **more: Any) -> bytes:
    document = {"model": "m", "tools": TOOLS[path], "tool_choice": choice, **more}
    return json.dumps(document).encode()


def asked(path: str, choice: Any) -> ToolChoice:
    return read(path, body(path, choice)).tools


def sent(path: str, choice: Any) -> tuple[list[str], Any]:
    """The names of the tools that the engine sees, and the choice."""
    document = json.loads(with_chosen_tools(path, body(path, choice), asked(path, choice)))
    tools = [tool.get("function", tool)["name"] for tool in document["tools"]]
    return tools, document["tool_choice"]


@pytest.mark.parametrize(
    ("path", "choice", "tools", "word"),
    [
        (CHAT, {"type": "function", "function": {"name": "find"}}, ["find"], "required"),
        (RESPONSES, {"type": "function", "name": "find"}, ["find"], "required"),
        (MESSAGES, {"type": "tool", "name": "find"}, ["find"], {"type": "any"}),
        (
            MESSAGES,
            {"type": "tool", "name": "find", "disable_parallel_tool_use": True},
            ["find"],
            {"type": "any", "disable_parallel_tool_use": True},
        ),
        (
            CHAT,
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [TOOLS[CHAT][2], TOOLS[CHAT][0]]},
            },
            ["look", "tell"],
            "auto",
        ),
        (
            RESPONSES,
            {"type": "allowed_tools", "mode": "required", "tools": [TOOLS[RESPONSES][1]]},
            ["find"],
            "required",
        ),
    ],
)
def test_tools_that_were_not_chosen_are_left_out(
    path: str, choice: Any, tools: list[str], word: Any
) -> None:
    assert sent(path, choice) == (tools, word)
    assert asked(path, choice).must_call is (word != "auto")


@pytest.mark.parametrize(
    ("path", "choice", "must_call"),
    [
        (CHAT, "required", True),
        (RESPONSES, "required", True),
        (MESSAGES, {"type": "any"}, True),
        (CHAT, "auto", False),
        (CHAT, "none", False),
        (CHAT, None, False),
        (MESSAGES, {"type": "auto"}, False),
        (MESSAGES, {"type": "none"}, False),
        (MESSAGES, "required", False),
        # Of these the engine says what it thinks.
        (CHAT, {"type": "custom", "custom": {"name": "find"}}, False),
        (CHAT, {"type": "function"}, False),
        (CHAT, {"type": "function", "function": {"name": 7}}, False),
        (CHAT, {"type": "allowed_tools", "allowed_tools": []}, False),
        (RESPONSES, {"type": "allowed_tools", "tools": [{"type": "mcp"}]}, False),
        (RESPONSES, {"type": ["function"]}, False),
        (CHAT, 7, False),
        (CHAT, [], False),
    ],
)
def test_other_choices_stay_as_they_are(path: str, choice: Any, must_call: bool) -> None:
    assert asked(path, choice) == ToolChoice(must_call)


def test_all_else_keeps_its_bytes() -> None:
    odd = b'{"model":"m", "temperature":1.50e0,"x":"\\u00e9","tools":[{"type":"function",'
    odd += b'"function":{"name":"find", "n":1.0}}],"tool_choice":{"type":"function",'
    odd += b'"function":{"name":"find"}}}'
    ask = read(CHAT, odd)
    assert with_chosen_tools(CHAT, odd, ask.tools) == (
        b'{"model":"m","temperature":1.50e0,"x":"\\u00e9","tools":[{"type":"function",'
        b'"function":{"name":"find", "n":1.0}}],"tool_choice":"required"}'
    )


def test_a_tool_that_is_not_there_cannot_be_chosen() -> None:
    choice = {"type": "function", "function": {"name": "fly"}}
    with pytest.raises(BadBodyError, match="names fly, which is none of the tools") as bad:
        sent(CHAT, choice)
    assert (bad.value.param, bad.value.code) == ("tool_choice", "invalid_value")


def test_without_tools_there_is_nothing_to_choose() -> None:
    for path in KINDS:
        got = read(path, b'{"model":"m","tool_choice":"required","tools":[]}')
        assert got.tools == Ask("m").tools
    broken = b'{"model":"m","tools":{"a":1},"tool_choice":{"type":"function","name":"a"}}'
    assert with_chosen_tools(RESPONSES, broken, read(RESPONSES, broken).tools) == broken
