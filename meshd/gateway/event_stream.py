"""Server-sent events as bytes: where one ends, and whether the stream said that it is done.

Clients cannot act on half an event, and half an event that was sent cannot be taken back; so what
is relayed always ends at an event's end, and an error event can follow at any time. An engine
writes whole events, so nothing waits in practice. Format: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

MAX_HELD_BYTES = 1024 * 1024

_DONE = (b"data: [DONE]", b"data:[DONE]")
_ERROR = (b'data: {"error"', b'data:{"error"', b"error:", b"event: error")
_TAIL_BYTES = 64


class EventStream:
    """Cuts a byte stream at the ends of events.

    :ivar done: the stream has said `[DONE]`.
    :ivar failed: its last complete event was an error.
    """

    __slots__ = ("_held", "_last", "done", "failed", "whole")

    def __init__(self) -> None:
        self._held = bytearray()
        self.done = False
        self.failed = False
        self.whole = True

    def feed(self, chunk: bytes) -> bytes:
        """All that can be sent on now; the bytes come out as they went in, in order.

        An event longer than `MAX_HELD_BYTES` is passed on in pieces, to bound memory.
        """
        if not self._held and chunk.endswith(b"\n\n"):
            self._note(chunk)
            return chunk
        start = max(0, len(self._held) - 3)
        self._held += chunk
        end = max(_after(self._held, b"\n\n", start), _after(self._held, b"\r\n\r\n", start))
        if end:
            ready = bytes(self._held[:end])
            del self._held[:end]
            self._note(ready)
            return ready
        if len(self._held) > MAX_HELD_BYTES:
            ready = bytes(self._held)
            self._held.clear()
            self.whole = False
            self.done = self.failed = False
            return ready
        return b""

    def rest(self) -> bytes:
        """What is held of an event that never ended."""
        return bytes(self._held)

    def _note(self, ready: bytes) -> None:
        self.whole = True
        stripped = ready.rstrip(b"\r\n")
        line = max(stripped.rfind(b"\n\n"), stripped.rfind(b"\r\n\r\n"))
        last = stripped[line + 1 : line + 1 + _TAIL_BYTES].lstrip(b"\r\n")
        self.done = last.startswith(_DONE)
        self.failed = last.startswith(_ERROR)


def _after(held: bytearray, mark: bytes, start: int) -> int:
    found = held.rfind(mark, start)
    return 0 if found < 0 else found + len(mark)
