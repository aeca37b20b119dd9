"""The last events of a stream whose text is complete, when its engine can no longer send them.

In the shapes that llama-server 0.7 gives them. What only the engine knew, the prompt's length
above all, is left out.
"""

from __future__ import annotations

from typing import Any

import msgspec

from meshd.gateway.transcript import CHAT, COMPLETIONS, MESSAGES, Told

DONE = b"data: [DONE]\n\n"


def closing(told: Told, *, by_limit: bool) -> bytes:
    """The events that are missing.

    :param by_limit: the text ended at the client's token limit, if no reason was sent yet.
    """
    if told.done:
        return b""
    if told.path == MESSAGES:
        return b"".join(named(event) for event in _messages(told, by_limit))
    if told.path in (CHAT, COMPLETIONS):
        return b"".join(unnamed(event) for event in _openai(told, by_limit)) + DONE
    return b"".join(
        named(event)
        for event in numbered(_responses(told), told.sequence if told.sequence >= 0 else None)
    )


def named(event: dict[str, Any]) -> bytes:
    """As one server-sent event, with its type as its name."""
    name = str(event.get("type", "")).encode()
    return b"event: " + name + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"


def unnamed(event: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def numbered(events: list[dict[str, Any]], last: int | None) -> list[dict[str, Any]]:
    """:param last: number of the event before, None where they have none."""
    if last is None:
        return events
    return [
        {**event, "sequence_number": number} for number, event in enumerate(events, start=last + 1)
    ]


def block_end(index: int, kind: str, *, signed: bool = False) -> list[dict[str, Any]]:
    """The end of a Messages block. llama-server's thinking has an empty signature."""
    stop: dict[str, Any] = {"type": "content_block_stop", "index": index}
    if kind != "thinking" or signed:
        return [stop]
    signature = {"type": "signature_delta", "signature": ""}
    return [{"type": "content_block_delta", "index": index, "delta": signature}, stop]


def _openai(told: Told, by_limit: bool) -> list[dict[str, Any]]:
    if told.finish:
        return []
    reason = "length" if by_limit else "stop"
    choice: dict[str, Any]
    if told.path == CHAT:
        choice = {"finish_reason": reason, "index": 0, "delta": {}}
        kind = "chat.completion.chunk"
    else:
        choice = {"text": "", "index": 0, "logprobs": None, "finish_reason": reason}
        kind = "text_completion"
    event: dict[str, Any] = {
        "choices": [choice],
        "created": told.created,
        "id": told.id,
        "model": told.model,
    }
    if told.fingerprint:
        event["system_fingerprint"] = told.fingerprint
    return [{**event, "object": kind}]


def _messages(told: Told, by_limit: bool) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for block in told.blocks:
        if not block.closed:
            events += block_end(block.index, block.type, signed=block.signed)
    if not told.finish:
        reason = "max_tokens" if by_limit else "end_turn"
        events.append(
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": None},
                "usage": {"output_tokens": told.tokens},
            }
        )
    return [*events, {"type": "message_stop"}]


def _responses(told: Told) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    output: list[dict[str, Any]] = []
    for kind, item_id in told.items:
        part: dict[str, Any]
        if kind == "reasoning":
            part = {"type": "reasoning_text", "text": told.reasoning}
            item = {"id": item_id, "summary": [], "type": kind, "content": [part]}
            item["encrypted_content"] = ""
        else:
            part = {"type": "output_text", "annotations": [], "logprobs": [], "text": told.text}
            if ("response.output_text.done", "") not in told.ended:
                done = {"type": "response.output_text.done", "item_id": item_id}
                events.append({**done, "text": told.text})
            if ("response.content_part.done", "") not in told.ended:
                done = {"type": "response.content_part.done", "item_id": item_id}
                events.append({**done, "part": part})
            item = {"type": kind, "status": "completed", "id": item_id, "content": [part]}
            item["role"] = "assistant"
        output.append(item)
        if ("response.output_item.done", kind) not in told.ended:
            events.append({"type": "response.output_item.done", "item": item})
    response = {"id": told.id, "object": "response", "status": "completed", "output": output}
    if told.model:
        response["model"] = told.model
    return [*events, {"type": "response.completed", "response": response}]
