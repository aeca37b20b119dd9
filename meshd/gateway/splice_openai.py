"""Chunks of chat completions and of completions, spliced into an earlier stream of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshd.gateway.splice_said import Said


def rewrite_chunks(said: Said) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    told = said.told

    def chunk(event: dict[str, Any]) -> list[dict[str, Any]]:
        if told.id:
            event |= {"id": told.id, "created": told.created, "model": told.model}
            if told.fingerprint:
                event["system_fingerprint"] = told.fingerprint
        choices = event.get("choices", [])
        event["choices"] = [choice for choice in choices if _is_new(said, choice)]
        if event.get("usage"):
            said.fix_usage(event["usage"], "prompt_tokens", "completion_tokens")
        if event.get("timings"):
            said.fix_timings(event["timings"])
        return [event] if event["choices"] or not choices else []

    return chunk


def _is_new(said: Said, choice: dict[str, Any]) -> bool:
    """Leave of a choice what the client lacks. :returns: whether there is anything."""
    delta = choice.get("delta")
    if delta is not None:
        # llama-server's first delta has no content, others' an empty one.
        if said.told.role and delta.pop("role", None) and not delta.get("content"):
            delta.pop("content", None)
        for name, new in (("reasoning_content", said.reasoning), ("content", said.text)):
            if delta.get(name):
                delta[name] = new(delta[name])
                if not delta[name]:
                    del delta[name]
        if delta.get("tool_calls"):
            said.caught_up()
        left = bool(delta)
    else:
        choice["text"] = said.text(choice["text"])
        left = bool(choice["text"])
    if choice.get("finish_reason"):
        said.caught_up()
        return True
    return left
