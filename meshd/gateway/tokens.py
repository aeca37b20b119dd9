"""How many tokens an answer cost, as far as it says so itself.

llama-server writes OpenAI's `usage` into whole answers, and its own `timings` (prompt_n, cache_n,
predicted_n) into those and into a stream's last event; a stream that broke off before has only
its events to count.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

_MARKS = (b'"usage"', b'"timings"')
_EVENT = b"data: {"


@dataclass(frozen=True, slots=True)
class Tokens:
    prompt: int = 0
    completion: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Timings(msgspec.Struct):
    prompt_n: int = 0
    cache_n: int = 0
    predicted_n: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    timings: _Timings | None = None


_decoder = msgspec.json.Decoder(_Answer)
# A forged figure must not outweigh all others: no context is longer.
_MOST = 1 << 24


def tokens_of(document: bytes) -> Tokens | None:
    """What a whole answer or one event's data says; None when it says nothing."""
    try:
        answer = _decoder.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if answer.usage is not None:
        return _bounded(answer.usage.prompt_tokens, answer.usage.completion_tokens)
    if answer.timings is not None:
        timings = answer.timings
        return _bounded(timings.prompt_n + timings.cache_n, timings.predicted_n)
    return None


class StreamTokens:
    """Counts along a stream of whole events."""

    __slots__ = ("_events", "_said")

    def __init__(self) -> None:
        self._events = 0
        self._said: Tokens | None = None

    def feed(self, ready: bytes) -> None:
        self._events += ready.count(_EVENT)
        if any(mark in ready for mark in _MARKS):
            for line in ready.split(b"\n"):
                if line.startswith(_EVENT) and any(mark in line for mark in _MARKS):
                    self._said = tokens_of(line.removeprefix(b"data: ")) or self._said

    @property
    def tokens(self) -> Tokens:
        # One event is about one token.
        return self._said or Tokens(0, self._events)


def _bounded(prompt: int, completion: int) -> Tokens:
    return Tokens(min(max(prompt, 0), _MOST), min(max(completion, 0), _MOST))
