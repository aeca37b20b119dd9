"""Server-sent events as bytes: where one ends, and whether the stream said that it is done.

Clients cannot act on half an event, and half an event that was sent cannot be taken back; so what
is relayed always ends at an event's end, and an error event can follow at any time. An engine
writes whole events, so nothing waits in practice. Format: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meshd.gateway.openai_error import ApiError
from meshd.gateway.protocols import CHAT, Protocol

MAX_HELD_BYTES = 1024 * 1024

_TAIL_BYTES = 64
# So begins an event of a kind that has no name: its data is an object, so not `[DONE]`.
_ORDINARY = b"data: {"
_EVENT_END = re.compile(rb"\n\n|\r\n\r\n")


class EventStream:
    """Cuts a byte stream at the ends of events.

    :ivar done: the stream has said that it is complete, in its protocol's words.
    :ivar error: that the engine reported with an event. The event was replaced by one in the
        protocol's shape, and nothing after it is passed on.
    :ivar whole: what was passed on ends at an event's end.
    """

    __slots__ = ("_held", "_opening", "_protocol", "done", "error", "whole")

    def __init__(self, protocol: Protocol = CHAT) -> None:
        self._protocol = protocol
        self._held = bytearray()
        self._opening = b""
        self.done = False
        self.error: ApiError | None = None
        self.whole = True

    @property
    def failed(self) -> bool:
        """The engine itself ended the stream with an error event."""
        return self.error is not None

    @property
    def complete(self) -> bool:
        """Done, even if the last event lacks the empty line after it."""
        return self.done or self._protocol.ends(self.rest())

    def feed(self, chunk: bytes) -> bytes:
        """All that can be sent on now; the bytes come out as they went in, in order.

        An event longer than `MAX_HELD_BYTES` is passed on in pieces, to bound memory.
        """
        if self.error is not None:
            return b""
        if not self._held and chunk.endswith(b"\n\n"):
            return self._note(chunk)
        start = max(0, len(self._held) - 3)
        self._held += chunk
        end = max(_after(self._held, b"\n\n", start), _after(self._held, b"\r\n\r\n", start))
        if end:
            ready = bytes(self._held[:end])
            del self._held[:end]
            return self._note(ready)
        if len(self._held) > MAX_HELD_BYTES:
            ready = bytes(self._held)
            self._held.clear()
            if self.whole:
                self._opening = ready[:_TAIL_BYTES]
            self.whole = False
            self.done = False
            return ready
        return b""

    def rest(self) -> bytes:
        """What is held of an event that never ended."""
        return bytes(self._held)

    def _note(self, ready: bytes) -> bytes:
        """What of these whole events to pass on."""
        opening, self._opening = self._opening, b""
        self.whole = True
        if not opening:
            if b"error" in ready:
                ready = self._up_to_error(ready)
            elif (
                ready.startswith(_ORDINARY)
                and ready.find(b"\n\n") == len(ready) - 2
                and b"\r" not in ready
            ):
                # One event, as nearly all are, and none that ends a stream.
                self.done = False
                return ready
        last = next((event for event in _openings(ready) if not event.startswith(b":")), b"")
        if opening and _EVENT_END.search(ready.rstrip(b"\r\n")) is None:
            last = opening  # the end of an event that was too long to be held
        if last:
            self.done = self._protocol.ends(last)
        return ready

    def _up_to_error(self, ready: bytes) -> bytes:
        start = 0
        for end in [*_EVENT_END.finditer(ready)]:
            event = ready[start : end.end()].lstrip(b"\r\n")
            error = self._protocol.error_in(event)
            if error is not None:
                self.error = error
                self._held.clear()
                return ready[:start] + self._protocol.error_event(error)
            start = end.end()
        return ready


def _openings(ready: bytes) -> Iterator[bytes]:
    """How each event begins, the last one first."""
    end = len(ready.rstrip(b"\r\n"))
    while end > 0:
        line = max(ready.rfind(b"\n\n", 0, end), ready.rfind(b"\r\n\r\n", 0, end))
        yield ready[line + 1 : min(end, line + 1 + _TAIL_BYTES)].lstrip(b"\r\n")
        end = line


def _after(held: bytearray, mark: bytes, start: int) -> int:
    found = held.rfind(mark, start)
    return 0 if found < 0 else found + len(mark)
