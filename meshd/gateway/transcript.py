"""What a client was sent of a stream so far, so that another engine can go on with it.

Fed with whole events as they are sent; they are only collected, and read a batch at a time: most
streams never break. Fields: OpenAI's chat completion chunks, completions and Responses events,
Anthropic's Messages events, as llama-server 0.7 writes them (measured, docs/architecture.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
# Of the Responses protocol; each is sent once.
OPENINGS = ("response.created", "response.in_progress", "response.queued")

MAX_TEXT_BYTES = 1 << 20
# Small enough that 1,000 streams hold little and that no batch is felt by the others.
_BATCH_BYTES = 16 * 1024
# Every piece of bytes costs about 33 bytes beside its contents.
_PIECE_BYTES = 33


@dataclass(frozen=True, slots=True)
class Block:
    """A content block of the Messages protocol. :ivar signed: its signature was sent."""

    index: int
    type: str
    closed: bool = False
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """What the client knows.

    :ivar tokens: how many it was sent, about one an event; exact where the events say it.
    :ivar tools: a tool call has begun.
    :ivar finish: the reason why the answer ended, "" while it goes on.
    :ivar done: the protocol's last event was sent.
    :ivar role: the first event of the message was sent.
    :ivar prompt_tokens: of the request, None where the protocol says it only at the end.
    :ivar items: of the Responses protocol, type and id in order.
    :ivar ended: of the Responses protocol, type and item type of the closing events sent, and of
        those that open the answer.
    :ivar part: the Responses protocol's content part has begun.
    :ivar sequence: number of the last event, -1 where they have none.
    :ivar unknown: why its contents are not known (then all else is void), "" when they are.
    """

    path: str
    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    choices: int = 0
    tools: bool = False
    finish: str = ""
    done: bool = False
    role: bool = False
    usage: bool = False
    prompt_tokens: int | None = None
    id: str = ""
    created: int = 0
    model: str = ""
    fingerprint: str = ""
    blocks: tuple[Block, ...] = ()
    items: tuple[tuple[str, str], ...] = ()
    ended: frozenset[tuple[str, str]] = frozenset()
    part: bool = False
    sequence: int = -1
    unknown: str = ""


class _Timings(msgspec.Struct):
    predicted_n: int = 0


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str = ""
    created: int = 0
    model: str = ""
    system_fingerprint: str | None = None
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
    timings: _Timings | None = None


class _MessageUsage(msgspec.Struct):
    input_tokens: int = 0
    cache_read_input_tokens: int = 0


class _Message(msgspec.Struct):
    id: str = ""
    model: str = ""
    usage: _MessageUsage | None = None


class _ContentBlock(msgspec.Struct):
    type: str = ""


class _MessageDelta(msgspec.Struct):
    text: str = ""
    thinking: str = ""
    signature: str | None = None
    stop_reason: str | None = None


class _MessageEvent(msgspec.Struct):
    type: str
    index: int = 0
    message: _Message | None = None
    content_block: _ContentBlock | None = None
    delta: _MessageDelta | None = None


class _Item(msgspec.Struct):
    type: str = ""
    id: str = ""


class _Response(msgspec.Struct):
    id: str = ""
    model: str = ""
    created_at: float = 0


class _ResponseEvent(msgspec.Struct):
    type: str
    delta: str | None = None
    item: _Item | None = None
    response: _Response | None = None
    sequence_number: int = -1


_chunks = msgspec.json.Decoder(_Chunk | None)
_message_events = msgspec.json.Decoder(_MessageEvent)
_response_events = msgspec.json.Decoder(_ResponseEvent)


class Transcript:
    """Collects what is sent to one client; of no use for a path that cannot be resumed."""

    __slots__ = ("_blocks", "_ids", "_items", "_max_bytes", "_raw", "_raw_bytes", "_read",
                 "_reasoning", "_reasoning_now", "_seen", "_size_bytes", "_text", "_text_now",
                 "_told")  # fmt: skip

    def __init__(self, path: str, max_text_bytes: int = MAX_TEXT_BYTES) -> None:
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._size_bytes = 0
        self._max_bytes = max_text_bytes
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._text_now: list[str] = []
        self._reasoning_now: list[str] = []
        self._blocks: dict[int, Block] = {}
        self._items: list[tuple[str, str]] = []
        self._ids: set[int] = set()
        self._seen: set[tuple[str, str]] = set()
        self._told = _Facts()
        self._told.path = path
        self._read = {
            CHAT: self._chunk,
            COMPLETIONS: self._chunk,
            MESSAGES: self._message,
            RESPONSES: self._response,
        }.get(path)
        if self._read is None:
            self._forget("this endpoint's streams cannot be resumed")

    def feed(self, events: bytes) -> None:
        """Whole events, as they were sent to the client."""
        if self._told.unknown:
            return
        self._raw.append(events)
        self._raw_bytes += len(events) + _PIECE_BYTES
        if self._raw_bytes > _BATCH_BYTES:
            self._settle()

    @property
    def told(self) -> Told:
        """All that was fed so far."""
        self._settle()
        facts = self._told
        return Told(
            path=facts.path,
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            tokens=facts.tokens,
            choices=len(self._ids),
            tools=facts.tools,
            finish=facts.finish,
            done=facts.done,
            role=facts.role,
            usage=facts.usage,
            prompt_tokens=facts.prompt_tokens,
            id=facts.id,
            created=facts.created,
            model=facts.model,
            fingerprint=facts.fingerprint,
            blocks=tuple(self._blocks[index] for index in sorted(self._blocks)),
            items=tuple(self._items),
            ended=frozenset(self._seen),
            part=facts.part,
            sequence=facts.sequence,
            unknown=facts.unknown,
        )

    def _settle(self) -> None:
        if not self._raw or self._read is None:
            return
        lines = b"".join(self._raw).split(b"\n")
        self._raw.clear()
        self._raw_bytes = 0
        try:
            for line in lines:
                if line.startswith(b"data:"):
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        self._told.done = True
                    elif data:
                        self._read(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._forget("its events are of a kind that is not known")
            return
        for now, all_of_it in (
            (self._text_now, self._text),
            (self._reasoning_now, self._reasoning),
        ):
            if now:
                piece = "".join(now)
                now.clear()
                all_of_it.append(piece)
                self._size_bytes += len(piece.encode("utf-8", "surrogatepass"))
        if self._size_bytes > self._max_bytes:
            self._forget("it was too long to be kept")

    def _forget(self, why: str) -> None:
        self._told.unknown = why
        for held in (self._raw, self._text, self._reasoning, self._text_now, self._reasoning_now):
            held.clear()
        self._raw_bytes = 0

    def _chunk(self, data: bytes) -> None:
        chunk = _chunks.decode(data)
        if chunk is None:
            return
        told = self._told
        if not told.id:
            told.id, told.created, told.model = chunk.id, chunk.created, chunk.model
            told.fingerprint = chunk.system_fingerprint or ""
        told.usage = told.usage or chunk.usage is not None
        for choice in chunk.choices:
            self._ids.add(choice.index)
            told.role = True
            told.finish = choice.finish_reason or told.finish
            if choice.text is not None:
                self._add(self._text_now, choice.text)
            if choice.delta is not None:
                self._add(self._reasoning_now, choice.delta.reasoning_content)
                self._add(self._text_now, choice.delta.content)
                told.tools = told.tools or bool(choice.delta.tool_calls)
        if chunk.timings is not None and not told.finish:
            told.tokens = max(told.tokens, chunk.timings.predicted_n)

    def _message(self, data: bytes) -> None:
        event = _message_events.decode(data)
        told = self._told
        if event.type == "message_start" and event.message is not None:
            told.role, told.id, told.model = True, event.message.id, event.message.model
            if (usage := event.message.usage) is not None:
                told.prompt_tokens = usage.input_tokens + usage.cache_read_input_tokens
        elif event.type == "content_block_start" and event.content_block is not None:
            self._ids.add(0)
            self._blocks[event.index] = Block(event.index, event.content_block.type)
            told.tools = told.tools or event.content_block.type not in ("text", "thinking")
        elif event.type == "content_block_delta" and event.delta is not None:
            self._add(self._text_now, event.delta.text)
            self._add(self._reasoning_now, event.delta.thinking)
            if event.delta.signature is not None and event.index in self._blocks:
                self._blocks[event.index] = replace(self._blocks[event.index], signed=True)
        elif event.type == "content_block_stop" and event.index in self._blocks:
            self._blocks[event.index] = replace(self._blocks[event.index], closed=True)
        elif event.type == "message_delta" and event.delta is not None:
            told.finish = event.delta.stop_reason or told.finish
        elif event.type == "message_stop":
            told.done = True

    def _response(self, data: bytes) -> None:
        event = _response_events.decode(data)
        told = self._told
        told.sequence = max(told.sequence, event.sequence_number)
        kind = event.type
        if event.response is not None and not told.role:
            told.role, told.id = True, event.response.id
            told.model, told.created = event.response.model, int(event.response.created_at)
        if kind == "response.output_item.added" and event.item is not None:
            self._ids.add(0)
            self._items.append((event.item.type, event.item.id))
            told.tools = told.tools or event.item.type not in ("message", "reasoning")
        elif kind in OPENINGS:
            self._seen.add((kind, ""))
        elif kind == "response.content_part.added":
            told.part = True
        elif kind == "response.output_text.delta":
            self._add(self._text_now, event.delta)
        elif kind == "response.reasoning_text.delta":
            self._add(self._reasoning_now, event.delta)
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            told.finish, told.done = kind.removeprefix("response."), True
        elif kind.endswith(".done"):
            # All that follows the last token comes at once.
            told.finish = told.finish or "completed"
            self._seen.add((kind, event.item.type if event.item is not None else ""))

    def _add(self, where: list[str], piece: str | None) -> None:
        if piece:
            where.append(piece)
            self._told.tokens += 1


class _Facts:
    """The parts of `Told` that change one by one."""

    __slots__ = ("created", "done", "fingerprint", "finish", "id", "model", "part", "path",
                 "prompt_tokens", "role", "sequence", "tokens", "tools", "unknown",
                 "usage")  # fmt: skip

    def __init__(self) -> None:
        self.path = self.id = self.model = self.fingerprint = self.finish = self.unknown = ""
        self.created = self.tokens = 0
        self.sequence = -1
        self.done = self.role = self.tools = self.usage = self.part = False
        self.prompt_tokens: int | None = None
