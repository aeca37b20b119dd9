"""What is known of a shard's file before it has a certificate: a small JSON file of our own. Pure.

It outlives the process, so that hours of writing and measuring are not done twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import msgspec

from meshd.experts.logits_origin import LogitsOrigin
from meshd.quality import Fidelity

VERSION = 1
BYTES_MAX = 64 << 10
TEXTS_MAX = 16

_KEY = re.compile(r"[0-9a-f]{8,64}")
_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Natural = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class NoteError(ValueError):
    """A note that cannot be used."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured so far. :ivar text: its SHA-256.

    :ivar logits: beside which; None in notes that earlier versions left.
    """

    text: _Sha256
    measured: Fidelity
    logits: LogitsOrigin | None = None


@dataclass(frozen=True, slots=True)
class ShardNote:
    """A shard's file that was once whole.

    :ivar mtime_ns: of the file then; another one means that somebody wrote to it.
    :ivar used_s: Unix time at which it was last wished or served.
    :ivar verified_s: Unix time at which its content was last seen to be right.
    """

    key: str
    fingerprint: str
    size_bytes: _Natural
    sha256: _Sha256
    mtime_ns: _Natural
    used_s: _Natural
    verified_s: _Natural
    figures: Annotated[tuple[Figure, ...], msgspec.Meta(max_length=TEXTS_MAX)] = ()
    version: int = VERSION


def is_key(text: str) -> bool:
    """Whether it can be a shard's key, and so a file's name."""
    return _KEY.fullmatch(text) is not None


def encode(note: ShardNote) -> bytes:
    return msgspec.json.encode(note)


def decode(text: bytes, key: str) -> ShardNote:
    """:raises NoteError: it is of another shard or another version, or malformed."""
    if len(text) > BYTES_MAX:
        raise NoteError(f"has more than {BYTES_MAX} bytes")
    try:
        note = msgspec.json.decode(text, type=ShardNote)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise NoteError(str(error)) from None
    if note.key != key or note.version != VERSION:
        raise NoteError("is of another shard or another version")
    return note
