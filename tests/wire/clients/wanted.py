"""What the clients ask for, and what is no picture and no sound to a model that takes none."""

from __future__ import annotations

from typing import Any

QUESTION = "What is the weather in Paris, and the time in UTC?"
MOST_TOKENS = 600
ATTEMPTS = 40
"""Of three answers one has several calls; that none of so many has is not to be expected."""

PARAMETERS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "get_time": {
        "type": "object",
        "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}
ARGUMENT = {"get_weather": "city", "get_time": "zone"}

CHAT_TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in PARAMETERS.items()
]
RESPONSES_TOOLS: list[Any] = [
    {"type": "function", "name": name, "parameters": schema, "strict": True}
    for name, schema in PARAMETERS.items()
]
ANTHROPIC_TOOLS: list[Any] = [
    {"name": name, "description": name, "input_schema": schema}
    for name, schema in PARAMETERS.items()
]

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
"""A PNG of one pixel."""
SILENCE = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
"""A WAV of no length."""


def fits(name: str, arguments: dict[str, Any]) -> bool:
    """Whether a call is one that the tools allow."""
    argument = arguments.get(ARGUMENT[name])
    allowed = PARAMETERS[name]["properties"][ARGUMENT[name]].get("enum")
    return isinstance(argument, str) and (allowed is None or argument in allowed)
