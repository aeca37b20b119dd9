"""Events of Anthropic's Messages, spliced into an earlier stream of them.

llama-server numbers the blocks of a continuation as those of the whole message (thinking 0, text 0
or 1, tools after them), so that indexes stay; it begins the ones anew that the client has already,
and ends those too that only the first stream began.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshd.gateway.splice_said import BrokenSpliceError, Said
from meshd.gateway.stream_end import block_end


def rewrite_messages(said: Said) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    told = said.told
    blocks = {block.index: block.type for block in told.blocks}
    closed = {block.index for block in told.blocks if block.closed}
    signed = {block.index for block in told.blocks if block.signed}

    def delta(event: dict[str, Any]) -> list[dict[str, Any]]:
        part = event["delta"]
        for name, new in (("thinking", said.reasoning), ("text", said.text)):
            if part["type"] == f"{name}_delta":
                part[name] = new(part[name])
                return [event] if part[name] else []
        index = event["index"]
        if index in closed or (part["type"] == "signature_delta" and index in signed):
            return []
        if part["type"] == "signature_delta":
            signed.add(index)
        return [event]

    def start(event: dict[str, Any]) -> list[dict[str, Any]]:
        index, kind = event["index"], event["content_block"]["type"]
        if index in blocks:
            if blocks[index] != kind:
                raise BrokenSpliceError("diverged")
            return []
        blocks[index] = kind
        if kind not in ("text", "thinking"):
            said.caught_up()
        return [event]

    def event(one: dict[str, Any]) -> list[dict[str, Any]]:
        kind = one["type"]
        if kind == "message_start":
            return [] if told.role else [one]
        if kind == "content_block_start":
            return start(one)
        if kind == "content_block_delta":
            return delta(one)
        if kind == "content_block_stop":
            said.caught_up()
            if one["index"] in closed:
                return []
            closed.add(one["index"])
        elif kind == "message_delta":
            said.caught_up()
            ends = [
                end
                for index in sorted(blocks.keys() - closed)
                for end in block_end(index, blocks[index], signed=index in signed)
            ]
            closed.update(blocks)
            if not said.replays:
                one["usage"]["output_tokens"] += told.tokens
            return [*ends, one]
        return [one]

    return event
