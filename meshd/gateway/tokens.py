"""How many tokens an answer cost, as far as it says so itself.

llama-server writes a `usage` in the protocol's shape into whole answers and, where the protocol or
the client wants it, into a stream's events; and its own `timings` (prompt_n, cache_n, predicted_n,
and how long both took) into whole answers and a stream's last event. A stream that broke off before
has only its events to count.

========================  ===========================================================
chat, completions, rerank  ``usage.prompt_tokens``, ``completion_tokens``
responses                  ``usage.input_tokens``, ``output_tokens``; streamed, in ``response``
messages                   the same, less what was cached; streamed, half in ``message``
========================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

_USAGE, _TIMINGS = b'"usage"', b'"timings"'
_DATA = b"data: "
_EVENT = b"data: {"
# Events of Responses and Messages that bring no token.
_FRAMES = (
    *(b'"type":"response.created"', b'"type":"response.in_progress"', b'"type":"message_start"'),
    *(b'"type":"message_delta"', b'"type":"message_stop"', b'"type":"content_block_start"'),
    *(b'"type":"content_block_stop"', b'"type":"response.completed"', b'"type":"ping"'),
    *(b'.added"', b'.done"'),
)
_NAMED = b"event: "


class Tokens(msgspec.Struct, frozen=True):
    prompt: int = 0
    completion: int = 0


NO_TOKENS = Tokens()


class Timings(msgspec.Struct, frozen=True):
    """What the engine measured. :ivar cached: tokens of the prompt that it had already."""

    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    cached: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Timings(msgspec.Struct):
    prompt_n: int = 0
    cache_n: int = 0
    predicted_n: int = 0
    prompt_ms: float | None = None
    predicted_ms: float | None = None


class _Inner(msgspec.Struct):
    usage: _Usage | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    timings: _Timings | None = None
    response: _Inner | None = None
    message: _Inner | None = None


_decoder = msgspec.json.Decoder(_Answer)
# A forged figure must not outweigh all others: no context is longer.
_MOST = 1 << 24
# A day, as no answer takes longer.
_MOST_MS = 86_400_000.0


def costs_of(document: bytes) -> tuple[Tokens, Timings | None]:
    """What a whole answer says of its tokens, and the engine's own times; None without them."""
    answer = _read(document)
    if answer is None:
        return NO_TOKENS, None
    return _tokens(answer) or NO_TOKENS, _measured(answer)


class StreamTokens:
    """Counts along a stream of whole events.

    :ivar begun: there was an event with data.
    :ivar timings: as the engine said, None until it did.
    """

    __slots__ = ("_events", "_named", "_said", "begun", "timings")

    def __init__(self) -> None:
        self._events = 0
        self._named = False
        self._said: Tokens | None = None
        self.begun = False
        self.timings: Timings | None = None

    def feed(self, ready: bytes) -> None:
        count = ready.count(_EVENT)
        if not count:
            return
        if not self.begun:
            self.begun = True
            self._named = ready.startswith(_NAMED)
        if self._named:
            # Those protocols name their events, and frame the text with some of them.
            count = sum(not _frame(line) for line in _events(ready))
        self._events += count
        if _USAGE in ready or _TIMINGS in ready:
            for line in _events(ready):
                if _USAGE in line or _TIMINGS in line:
                    self._heed(line.removeprefix(_DATA))

    @property
    def tokens(self) -> Tokens:
        # One event is about one token.
        said = self._said or Tokens()
        return said if said.completion else Tokens(said.prompt, self._events)

    def _heed(self, data: bytes) -> None:
        answer = _read(data)
        if answer is None:
            return
        if tokens := _tokens(answer):
            said = self._said or Tokens()
            # Messages says the prompt at the beginning, the rest at the end.
            self._said = Tokens(
                max(said.prompt, tokens.prompt), max(said.completion, tokens.completion)
            )
        self.timings = _measured(answer) or self.timings


def _events(ready: bytes) -> Iterator[bytes]:
    return (line for line in ready.split(b"\n") if line.startswith(_EVENT))


def _frame(line: bytes) -> bool:
    head = line[:80]
    return any(frame in head for frame in _FRAMES)


def _read(document: bytes) -> _Answer | None:
    try:
        return _decoder.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _tokens(answer: _Answer) -> Tokens | None:
    usage = answer.usage
    for inner in (answer.response, answer.message):
        usage = usage or (inner.usage if inner else None)
    if usage is not None:
        prompt = usage.prompt_tokens
        if prompt is None:
            cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
            prompt = (usage.input_tokens or 0) + cached
        completion = usage.completion_tokens
        if completion is None:
            completion = usage.output_tokens or 0
        return _bounded(prompt, completion)
    if answer.timings is not None:
        timings = answer.timings
        return _bounded(timings.prompt_n + timings.cache_n, timings.predicted_n)
    return None


def _measured(answer: _Answer) -> Timings | None:
    timings = answer.timings
    if timings is None or (timings.prompt_ms is None and timings.predicted_ms is None):
        return None
    return Timings(
        min(max(timings.prompt_ms or 0.0, 0.0), _MOST_MS),
        min(max(timings.predicted_ms or 0.0, 0.0), _MOST_MS),
        min(max(timings.cache_n, 0), _MOST),
    )


def _bounded(prompt: int, completion: int) -> Tokens:
    return Tokens(min(max(prompt, 0), _MOST), min(max(completion, 0), _MOST))
