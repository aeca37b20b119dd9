"""Makes the events of a continuation go on with the stream that the client already has.

A continuation is a stream of its own: other ids, a beginning of its own, counts of its own. Here
it becomes the rest of the first one. What a replay says again is compared and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from meshd.gateway.continuation import Continuation
from meshd.gateway.splice_anthropic import rewrite_messages
from meshd.gateway.splice_openai import rewrite_chunks
from meshd.gateway.splice_responses import rewrite_responses
from meshd.gateway.splice_said import BrokenSpliceError, Said
from meshd.gateway.stream_end import named, unnamed
from meshd.gateway.transcript import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Told

__all__ = ["BrokenSpliceError", "Splice"]

# So that a client that waits during a replay sees that something happens.
_COMMENT_EVERY = 32
_COMMENT = b": resuming\n\n"

Rewrite = Callable[[dict[str, Any]], list[dict[str, Any]]]
_REWRITES: dict[str, Callable[[Said], Rewrite]] = {
    CHAT: rewrite_chunks,
    COMPLETIONS: rewrite_chunks,
    MESSAGES: rewrite_messages,
    RESPONSES: rewrite_responses,
}


class Splice:
    """One continuation's answer on its way to the client.

    :ivar begun: something of it went to the client; until then another engine may be asked.
    """

    __slots__ = ("_dropped", "_rewrite", "_said", "begun")

    def __init__(self, told: Told, continuation: Continuation) -> None:
        """:param told: what the continuation was made of."""
        self._said = Said(told, continuation.replays)
        self._rewrite = _REWRITES[told.path](self._said)
        self._dropped = 0
        self.begun = False

    def feed(self, events: bytes) -> bytes:
        """Whole events of the continuation; what of them the client gets, whole events too.

        :raises BrokenSpliceError: it cannot go on. What came before is with the client.
        """
        out: list[bytes] = []
        for event in events.replace(b"\r\n", b"\n").split(b"\n\n"):
            if event:
                self._one(event, out)
        return b"".join(out)

    def _one(self, event: bytes, out: list[bytes]) -> None:
        lines = event.split(b"\n")
        data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
        if not data or data == b"null":
            out.append(event + b"\n\n")
            return
        if data == b"[DONE]":
            self._said.caught_up()
            out.append(event + b"\n\n")
            return
        try:
            document = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise BrokenSpliceError("unreadable")
        if "error" in document or document.get("type") == "error":
            raise BrokenSpliceError("error")
        try:
            rewritten = self._rewrite(document)
        except (AttributeError, KeyError, TypeError):
            raise BrokenSpliceError("unreadable") from None
        write = named if any(line.startswith(b"event:") for line in lines) else unnamed
        out += [write(one) for one in rewritten]
        if rewritten:
            self.begun = True
            return
        self._dropped += 1
        if self._dropped % _COMMENT_EVERY == 0:
            out.append(_COMMENT)
