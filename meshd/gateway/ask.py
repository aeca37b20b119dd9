"""What a request's body asks for, as far as it decides where the request goes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from meshd.gateway.answer_format import answer_format
from meshd.gateway.conversation import (
    ABSENT,
    Message,
    Part,
    beginning,
    conversation,
    first_of,
    given,
    is_list,
    person,
)
from meshd.gateway.request_body import BadBodyError
from meshd.gateway.tool_choice import ALL, ToolChoice, tool_choice
from meshd.quality import Budget

# Of JSON text: English has four to five bytes a token, code three, Chinese one character of three.
BYTES_PER_TOKEN = 3
SESSION_HEADERS = ("X-Session-Id", "Session-Id", "X-Session-Affinity")
"""Headers in which clients say which conversation a request belongs to, the first one counts."""

_MAX_PARTS = 100_000


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request wants.

    :ivar model: as the client wrote it.
    :ivar needs: capability words; the model must have all of them (see `resolve.lacking`).
    :ivar prompt_tokens: a guess, from the size of the text; 0 where nothing is evaluated.
    :ivar max_tokens: that the client lets the answer have, 0 when it says nothing.
    :ivar affinity: 64-bit hash of the conversation's head, equal for all of its turns; 0 when
        there is no prefix worth keeping. The model is not part of it: names may be aliases.
    :ivar person: likewise of whose conversation it is, where that is said and the conversation has
        no name of its own; for engines whose answers differ.
    :ivar quality: that its headers ask for, None where they leave it to the configuration.
    :ivar tools: which of its tools the answer may call, or has to.
    :ivar answer_format: a `response_format` that the engine has to be told, b"" for none.
    """

    model: str
    stream: bool = False
    needs: frozenset[str] = frozenset()
    prompt_tokens: int = 0
    max_tokens: int = 0
    affinity: int = 0
    tools: ToolChoice = ALL
    answer_format: bytes = b""
    person: int = 0
    quality: Budget | None = None


class Kind(StrEnum):
    """What an endpoint does, in the words of `Route.capabilities`."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"


KINDS: Mapping[str, Kind] = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/responses": Kind.CHAT,
    "/v1/messages": Kind.CHAT,
    "/v1/messages/count_tokens": Kind.CHAT,
    "/v1/completions": Kind.COMPLETION,
    "/v1/embeddings": Kind.EMBEDDINGS,
    "/v1/rerank": Kind.RERANK,
    "/v1/reranking": Kind.RERANK,
    "/rerank": Kind.RERANK,
    "/reranking": Kind.RERANK,
}
"""Paths that `read` knows, llama-server's other names for reranking among them."""

_ALONE: Mapping[Kind, frozenset[str]] = {kind: frozenset({str(kind)}) for kind in Kind}

# Types of parts that only some models take. The text of a string cannot hold them with both
# quotes unescaped, so their absence is certain.
_MEDIA: Mapping[bytes, str] = {
    b'"image_url"': "vision",
    b'"input_image"': "vision",
    b'"image"': "vision",
    b'"input_audio"': "audio",
}
_MEDIA_IN: Mapping[str, tuple[bytes, ...]] = {
    "/v1/chat/completions": (b'"image_url"', b'"input_audio"'),
    "/v1/responses": (b'"input_image"', b'"input_audio"'),
    "/v1/messages": (b'"image"',),
}


class _Loose(msgspec.Struct):
    """Raw: of two equal keys the last counts, as in the engine, and no wrong type is an error."""

    model: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    tool_choice: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT
    system: msgspec.Raw = ABSENT
    instructions: msgspec.Raw = ABSENT
    prompt_cache_key: msgspec.Raw = ABSENT
    session_id: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT
    safety_identifier: msgspec.Raw = ABSENT
    metadata: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT
    n_predict: msgspec.Raw = ABSENT


class _Parted(msgspec.Struct):
    """All messages: for a body that may have pictures in it."""

    messages: list[Message] = []
    input: list[Message] = []


_parts = msgspec.json.Decoder(list[Part])
_parted = msgspec.json.Decoder(_Parted)
_loose = msgspec.json.Decoder(_Loose)
_body = msgspec.json.Decoder(
    msgspec.defstruct(
        "Body",
        [("messages", first_of(Message, 8) | None, None)],
        bases=(_Loose,),
    )
)
_INTEGER = re.compile(rb"[0-9]{1,9}", re.ASCII)
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")


def read(path: str, body: bytes, session: str = "", quality: Budget | None = None) -> Ask:
    """What the body asks of the endpoint at `path`, one of `KINDS`.

    Nothing large is built: 400 kB take about half a millisecond. What is wrong with a field
    other than `model` is for the engine to say; such a request only has no affinity.

    :param session: what the client calls the conversation (`session_of`), "" for nothing.
    :param quality: that its headers ask for.
    :raises BadBodyError: not a JSON object, nested too deeply, or no usable `model`.
    """
    fields = _fields(body)
    model = _model(fields.model)
    kind = KINDS[path]
    needs = _ALONE[kind]
    if kind is Kind.EMBEDDINGS or kind is Kind.RERANK:
        return Ask(model, needs=needs, quality=quality)
    chosen = ALL
    if given(fields.tools) and bytes(fields.tools) != b"[]":
        needs |= {"tools"}
        chosen = tool_choice(path, fields.tool_choice)
    text_bytes = len(body)
    for mark in _MEDIA_IN.get(path, ()):
        if mark in body:
            media, media_bytes = _media(body)
            needs |= media
            text_bytes -= media_bytes
            break
    counts = path.endswith("/count_tokens")
    named = 0 if counts else conversation(fields, session)
    return Ask(
        model,
        stream=bytes(fields.stream) == b"true" and not counts,
        needs=needs,
        prompt_tokens=0 if counts else text_bytes // BYTES_PER_TOKEN,
        max_tokens=_limit(fields),
        affinity=0 if counts else named or beginning(path, fields),
        tools=chosen,
        answer_format=answer_format(path, fields.text),
        person=0 if counts or named else person(path, fields),
        quality=quality,
    )


def session_of(headers: Mapping[str, str]) -> str:
    """The conversation as the client's headers name it, "" when they do not."""
    for name in SESSION_HEADERS:
        if said := headers.get(name):
            return said
    return ""


def _fields(body: bytes) -> Any:
    """A `_Loose`, with `messages` where they are what they should be."""
    try:
        try:
            return _body.decode(body)
        except msgspec.ValidationError:
            return _loose.decode(body)
    except RecursionError:
        raise BadBodyError("the request body is nested too deeply", code="invalid_json") from None
    except msgspec.ValidationError:
        raise BadBodyError("the request body must be a JSON object", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBodyError(f"the request body is not JSON: {error}", code="invalid_json") from None


def _model(raw: msgspec.Raw) -> str:
    try:
        model = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBodyError(f"the request body is not JSON: {error}", code="invalid_json") from None
    if model is None:
        raise BadBodyError(
            "you must provide a model parameter", param="model", code="missing_required_parameter"
        )
    if not isinstance(model, str):
        raise BadBodyError("model must be a string", param="model", code="invalid_type")
    return model


def _limit(fields: _Loose) -> int:
    """The engine takes the first of these; what is no count of tokens sets no limit."""
    for name in _LIMITS:
        raw: msgspec.Raw = getattr(fields, name)
        if raw is not ABSENT and len(raw) < 10 and _INTEGER.fullmatch(raw):
            return int(bytes(raw))
    return 0


def _media(body: bytes) -> tuple[frozenset[str], int]:
    """What the parts of messages need, and their bytes that are no text. Exact: a tool's parameter
    may be called `image_url` as well.
    """
    needs, size_bytes = set(), 0
    if body.count(b"{") > _MAX_PARTS:
        return frozenset(), 0
    try:
        parted = _parted.decode(body)
        for message in (*parted.messages, *parted.input):
            for part in _all_parts(message.content):
                if need := _MEDIA.get(bytes(part.type)):
                    needs.add(need)
                    size_bytes += sum(map(len, (part.image_url, part.input_audio, part.source)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset(), 0  # not what the endpoint takes; the engine will say so
    return frozenset(needs), size_bytes


def _all_parts(content: msgspec.Raw) -> Iterator[Part]:
    """With those of a tool's result, which is a part itself in Anthropic's messages."""
    for part in _parts.decode(content) if is_list(content) else ():
        yield part
        yield from _parts.decode(part.content) if is_list(part.content) else ()
