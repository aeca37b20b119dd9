"""Which conversation a request belongs to, and whose it is. Pure.

One 64-bit key for all turns of it, whichever engine answers; never 0, except for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import astuple

ABSENT = msgspec.Raw(b"null")

_PROMPT_HEAD_BYTES = 1024
_HEAD_PIECE_BYTES = 16 * 1024
# Claude Code's first system block; it has another checksum in each request.
_BILLING = b'"x-anthropic-billing-header'


class Part(msgspec.Struct):
    """A piece of a message's content; what is not listed may change from turn to turn."""

    type: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT
    input_audio: msgspec.Raw = ABSENT
    source: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT


class Message(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = ABSENT


def first_of(item: type[msgspec.Struct], count: int) -> Any:
    """The type of a list of which the first `count` items are read; the others are skipped, not
    built.
    """
    fields = [(f"item{number}", item | None, None) for number in range(count)]
    return msgspec.defstruct(f"First{item.__name__}", fields, array_like=True)


class _Metadata(msgspec.Struct):
    user_id: msgspec.Raw = ABSENT


_first_messages = msgspec.json.Decoder(first_of(Message, 8))
_first_parts = msgspec.json.Decoder(first_of(Part, 16))
_metadata = msgspec.json.Decoder(_Metadata)


def conversation(fields: Any, session: str) -> int:
    """What the client itself calls the conversation, the same in a header and in the body; 0 where
    it has no name.
    """
    if session:
        return _hash((b"session", session.encode("utf-8", "surrogateescape")))
    if _named(fields.session_id):
        try:
            said = msgspec.json.decode(fields.session_id, type=str)
            return _hash((b"session", said.encode("utf-8", "surrogateescape")))
        except (msgspec.DecodeError, UnicodeError):
            return _hash((b"session", memoryview(fields.session_id)))
    if _named(fields.prompt_cache_key):
        return _hash((b"cache", memoryview(fields.prompt_cache_key)))
    return 0


def person(path: str, fields: Any) -> int:
    """Who has the conversation, as OpenAI's `user` (of late `safety_identifier`) and Anthropic's
    `metadata.user_id` say; 0 for nobody.

    Replicas are chosen without it: one person has many conversations, and one node would have them
    all. Where answers differ from node to node, they are to be alike for one person.
    """
    raw = fields.user if _named(fields.user) else fields.safety_identifier
    if path == "/v1/messages" and given(fields.metadata):
        try:
            raw = _metadata.decode(fields.metadata).user_id
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return 0  # not what the endpoint takes; the engine will say so
    return _hash((b"person", memoryview(raw))) if _named(raw) else 0


def _named(raw: msgspec.Raw) -> bool:
    return given(raw) and bytes(memoryview(raw)[:3]) != b'""'


def beginning(path: str, fields: Any) -> int:
    """One key for all turns of a conversation that has no name."""
    try:
        return _hash(_head(path, fields))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0  # not what the endpoint takes; the engine will say so


def _head(path: str, fields: Any) -> list[bytes | memoryview]:
    """The conversation up to and including its user's first words."""
    pieces: list[bytes | memoryview] = []
    messages = getattr(fields, "messages", None)
    if path == "/v1/completions":
        # Nothing says where a prompt's first turn ends.
        if given(fields.prompt):
            pieces.append(memoryview(fields.prompt)[:_PROMPT_HEAD_BYTES])
        return pieces
    if path == "/v1/messages":
        _add_content(pieces, fields.system)
    elif path == "/v1/responses":
        _add_content(pieces, fields.instructions)
        if not is_list(fields.input):
            pieces.append(b"user")
            _add_content(pieces, fields.input)
            return pieces
        messages = _first_messages.decode(fields.input)
    for message in astuple(messages) if messages is not None else ():
        if message is None:
            break
        pieces.append(message.role.encode("utf-8", "surrogatepass"))
        _add_content(pieces, message.content)
        if message.role == "user":
            break
    return pieces


def _add_content(pieces: list[bytes | memoryview], raw: msgspec.Raw) -> None:
    """Its text and pictures, the same whether it is a string or a list of parts."""
    if not is_list(raw):
        if given(raw):
            pieces.append(memoryview(raw))
        return
    for part in astuple(_first_parts.decode(raw)):
        if part is None:
            break
        pieces += [
            memoryview(piece)
            for piece in (part.text, part.image_url, part.input_audio, part.source)
            if given(piece) and not bytes(memoryview(piece)[:40]).startswith(_BILLING)
        ]


def is_list(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"["


def _hash(pieces: Iterable[bytes | memoryview]) -> int:
    """Of long pieces only both ends and the length count. Never 0, except of nothing."""
    hashed: list[bytes | memoryview] = []
    for piece in pieces:
        hashed.append(len(piece).to_bytes(8, "big"))
        if len(piece) <= 2 * _HEAD_PIECE_BYTES:
            hashed.append(piece)
        else:
            hashed += piece[:_HEAD_PIECE_BYTES], piece[-_HEAD_PIECE_BYTES:]
    if not hashed:
        return 0
    # In one call: each costs as much as a kilobyte. Processors have instructions for this one.
    return int.from_bytes(sha256(b"".join(hashed)).digest()[:8], "big") or 1


def given(raw: msgspec.Raw) -> bool:
    return raw is not ABSENT and (len(raw) != 4 or bytes(raw) != b"null")
