"""What nodes send each other: MessagePack arrays, told apart by their first element.

Items (`Entry`, `Burial`, `Revocation`) are signed and kept as the bytes that came, so that anyone
can hand them on. The rest are the questions and answers of one comparison and of a ping.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from meshd.mesh.bus import MESSAGE_MAX_BYTES

BUCKETS = 64
DOUBTS_MAX = 16
ROOM_BYTES = MESSAGE_MAX_BYTES - 2048
"""What a message's list may take, so that the whole stays within `MESSAGE_MAX_BYTES`."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Hash = Annotated[int, msgspec.Meta(ge=0)]
Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Admission = Annotated[bytes, msgspec.Meta(max_length=1024)]
NodeId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Age = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Space = Annotated[str, msgspec.Meta(min_length=1, max_length=8)]


class Entry(msgspec.Struct, tag="e", array_like=True, frozen=True, gc=False):
    """What one node says in one namespace. Its owner is whoever has the key."""

    key: Key
    admission: Admission
    space: Space
    incarnation: Count
    version: Count
    payload: bytes
    signature: Signature


class Burial(msgspec.Struct, tag="d", array_like=True, frozen=True, gc=False):
    """A core's word that a node is dead. :ivar key: the core's."""

    key: Key
    admission: Admission
    node: NodeId
    incarnation: Count
    signature: Signature


class Revocation(msgspec.Struct, tag="r", array_like=True, frozen=True, gc=False):
    """The mesh's own word that a node is not to be heard any more."""

    node: NodeId
    signature: Signature


class Mark(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What somebody has in one slot of one node. :ivar mark: tells contents apart."""

    space: Space
    incarnation: Count
    version: Count
    mark: Hash


class Summary(msgspec.Struct, array_like=True, frozen=True):
    node: NodeId
    marks: list[Mark]


class Item(msgspec.Struct, array_like=True, frozen=True):
    """:ivar age_s: how long ago its owner said it, as far as the sender knows."""

    age_s: Age
    raw: bytes


class Want(msgspec.Struct, array_like=True, frozen=True):
    node: NodeId
    space: Space


class Compare(msgspec.Struct, tag="c", array_like=True, frozen=True):
    """Have we the same? :ivar doubts: nodes that the asker cannot reach."""

    root: Hash
    doubts: list[NodeId] = []


class Same(msgspec.Struct, tag="s", array_like=True, frozen=True):
    doubts: list[NodeId] = []


class Differ(msgspec.Struct, tag="b", array_like=True, frozen=True):
    buckets: Annotated[list[Hash], msgspec.Meta(min_length=BUCKETS, max_length=BUCKETS)]
    doubts: list[NodeId] = []


class Sync(msgspec.Struct, tag="y", array_like=True, frozen=True):
    """Send me what I lack in these buckets. :ivar summaries: all that the asker has in them."""

    buckets: Annotated[
        list[Annotated[int, msgspec.Meta(ge=0, lt=BUCKETS)]], msgspec.Meta(max_length=BUCKETS)
    ]
    summaries: list[Summary]


class Batch(msgspec.Struct, tag="i", array_like=True, frozen=True):
    """:ivar wants: what the sender lacks. :ivar more: not everything had room."""

    items: list[Item]
    wants: list[Want]
    more: bool


class Give(msgspec.Struct, tag="g", array_like=True, frozen=True):
    items: list[Item]


class Taken(msgspec.Struct, tag="t", array_like=True, frozen=True):
    """:ivar fresh: how many of the items were news."""

    fresh: Count


class Ping(msgspec.Struct, tag="p", array_like=True, frozen=True):
    """Are you there? :ivar burial: what is said of the one asked, or empty."""

    node: NodeId
    burial: bytes = b""


class Pong(msgspec.Struct, tag="o", array_like=True, frozen=True):
    """:ivar standing: the newest `Entry` that shows the sender's incarnation, or empty."""

    node: NodeId
    standing: bytes = b""


Signed = Entry | Burial | Revocation
Question = Compare | Sync | Give | Ping
Answer = Same | Differ | Batch | Taken | Pong

_encoder = msgspec.msgpack.Encoder()
_signed: msgspec.msgpack.Decoder[Signed] = msgspec.msgpack.Decoder(Signed)
_question: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)

encode = _encoder.encode


def decode_signed(data: bytes) -> Signed | None:
    """An item, or None for anything else."""
    try:
        return _signed.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def decode_question(data: bytes) -> Question | None:
    try:
        return _question.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def decode_answer(data: bytes) -> Answer | None:
    try:
        return _answer.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
