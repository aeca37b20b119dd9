"""Streams that llama-server made (`tests/wire/record_streams.py`), and what a client reads in one.

The reading here is a client's, on its own: nothing of it comes from the gateway.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

RECORDINGS = Path(__file__).resolve().parents[1] / "data/streams.json"


@dataclass(frozen=True)
class Rest:
    """:ivar body: what the engine was asked. :ivar stream: what it answered."""

    body: str
    stream: str


@dataclass(frozen=True)
class Recording:
    """:ivar whole: a stream, as sent. :ivar again: another one of the same request.

    :ivar rests: by the number of events that the client had.
    """

    name: str
    path: str
    body: str
    whole: str
    again: str
    rests: dict[int, Rest]


@cache
def recordings() -> dict[str, Recording]:
    """By name."""
    found = msgspec.json.decode(RECORDINGS.read_bytes(), type=list[Recording])
    return {one.name: one for one in found}


def events_of(stream: bytes) -> list[bytes]:
    """Each whole, with the empty line after it."""
    return [event + b"\n\n" for event in stream.split(b"\n\n") if event]


@dataclass
class Heard:
    """All that a client makes of a stream.

    :ivar ids: that it said, of anything; not when, as that changes along a stream.
    :ivar frames: its events but those that bring text, in order, by type.
    :ivar finish: reasons why it ended. :ivar usage: each that it said. :ivar last: the last line.
    :ivar said: what its last events say of the whole text.
    """

    text: str = ""
    reasoning: str = ""
    ids: set[str] = field(default_factory=set)
    frames: list[str] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    last: str = ""
    comments: list[str] = field(default_factory=list)


def heard(stream: bytes) -> Heard:
    """:raises AssertionError: an event is not well-formed."""
    got = Heard()
    assert stream.endswith(b"\n\n")
    for event in events_of(stream):
        lines = event.decode().splitlines()
        if all(line.startswith(":") or not line for line in lines):
            got.comments += [line for line in lines if line]
            continue
        data = "\n".join(line[5:].strip() for line in lines if line.startswith("data:"))
        named = [line[6:].strip() for line in lines if line.startswith("event:")]
        got.last = data
        if data == "[DONE]":
            got.frames.append(data)
            continue
        document = json.loads(data)
        if "choices" in document:
            _chunk(document, got)
        else:
            assert named == [document["type"]]
            _named(document, got)
    return got


def _chunk(document: dict[str, Any], got: Heard) -> None:
    got.ids.add(document["id"])
    for choice in document["choices"]:
        delta = choice.get("delta", {})
        got.text += delta.get("content") or choice.get("text") or ""
        got.reasoning += delta.get("reasoning_content") or ""
        if "role" in delta:
            got.frames.append("role")
        if choice["finish_reason"]:
            got.finish.append(choice["finish_reason"])
    if "usage" in document:
        got.usage.append(_counts(document["usage"], "prompt_tokens", "completion_tokens"))
    if "timings" in document and got.finish:
        _timings(document, got)


def _named(document: dict[str, Any], got: Heard) -> None:
    kind = document["type"]
    delta = document.get("delta", {})
    if kind in ("response.output_text.delta", "response.reasoning_text.delta"):
        if kind == "response.output_text.delta":
            got.text += delta
        else:
            got.reasoning += delta
        got.ids.add(document["item_id"])
        return
    if kind == "content_block_delta" and delta["type"] != "signature_delta":
        got.text += delta.get("text", "")
        got.reasoning += delta.get("thinking", "")
        return
    got.frames.append(f"{kind} {document.get('index', '')}".strip())
    if kind == "message_start":
        got.ids.add(document["message"]["id"])
        got.usage.append({"prompt": _prompt(document["message"]["usage"])})
    elif kind == "message_delta":
        got.finish.append(delta["stop_reason"])
        got.usage.append({"completion": document["usage"]["output_tokens"]})
    elif kind == "response.output_item.done":
        got.said += [part["text"] for part in document["item"]["content"]]
        got.ids.add(document["item"]["id"])
    elif kind in ("response.output_text.done", "response.content_part.done"):
        got.said.append(document.get("text") or document["part"]["text"])
        got.ids.add(document["item_id"])
    elif kind == "response.completed":
        response = document["response"]
        got.ids |= {response["id"], *(item["id"] for item in response["output"])}
        got.said += [part["text"] for item in response["output"] for part in item["content"]]
        got.finish.append(response["status"])
        if "usage" in response:
            got.usage.append(_counts(response["usage"], "input_tokens", "output_tokens"))
    elif "response" in document:
        got.ids.add(document["response"]["id"])


def _prompt(usage: dict[str, Any]) -> int:
    return int(usage["input_tokens"] + usage["cache_read_input_tokens"])


def _counts(usage: dict[str, Any], prompt: str, completion: str) -> dict[str, Any]:
    assert usage["total_tokens"] == usage[prompt] + usage[completion]
    return {"prompt": usage[prompt], "completion": usage[completion]}


def _timings(document: dict[str, Any], got: Heard) -> None:
    timings = document["timings"]
    got.usage.append(
        {
            "prompt": timings["prompt_n"] + timings["cache_n"],
            "completion": timings["predicted_n"],
        }
    )
