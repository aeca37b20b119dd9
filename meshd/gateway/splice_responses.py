"""Events of OpenAI's Responses, spliced into an earlier stream of them.

llama-server has at most one item of thoughts and one message, which the continuation begins anew
under other ids; in its closing events it has the text of the whole, as far as it knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshd.gateway.splice_said import Said
from meshd.gateway.stream_end import numbered
from meshd.gateway.transcript import OPENINGS


def rewrite_responses(said: Said) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    told = said.told
    items = dict(told.items)
    last = told.sequence

    def same_item(item: dict[str, Any]) -> None:
        item["id"] = items.get(item["type"], item["id"])
        if item["type"] == "reasoning" and item.get("content"):
            item["content"][0]["text"] = said.whole("reasoning")
        elif item["type"] == "message" and item.get("content"):
            item["content"][0]["text"] = said.whole("text")

    def same_ids(event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind.startswith("response.reasoning_text."):
            event["item_id"] = items.get("reasoning", event["item_id"])
        elif kind.startswith(("response.output_text.", "response.content_part.")):
            event["item_id"] = items.get("message", event["item_id"])
        if told.id and "response" in event:
            event["response"]["id"] = told.id

    def added(event: dict[str, Any]) -> bool:
        kind = event["item"]["type"]
        if kind in ("message", "reasoning"):
            if kind in items:
                return False
            items[kind] = event["item"]["id"]
        else:
            said.caught_up()
        return True

    def wanted(event: dict[str, Any]) -> bool:
        kind = event["type"]
        if kind in OPENINGS:
            return (kind, "") not in told.ended
        if kind == "response.output_item.added":
            return added(event)
        if kind == "response.content_part.added":
            return not told.part
        if kind in ("response.output_text.delta", "response.reasoning_text.delta"):
            new = said.text if kind == "response.output_text.delta" else said.reasoning
            event["delta"] = new(event["delta"])
            return bool(event["delta"])
        said.caught_up()
        if kind == "response.output_text.done":
            event["text"] = said.whole("text")
        elif kind == "response.content_part.done":
            event["part"]["text"] = said.whole("text")
        elif kind == "response.output_item.done":
            same_item(event["item"])
        elif kind == "response.completed":
            for item in event["response"]["output"]:
                same_item(item)
            if event["response"].get("usage"):
                said.fix_usage(event["response"]["usage"], "input_tokens", "output_tokens")
        return True

    def event(one: dict[str, Any]) -> list[dict[str, Any]]:
        nonlocal last
        if not wanted(one):
            return []
        same_ids(one)
        if one.get("timings"):
            said.fix_timings(one["timings"])
        if told.sequence < 0:
            return [one]
        events = numbered([one], last)
        last += 1
        return events

    return event
