"""A model's probabilities for each token of a text, as llama-perplexity writes and reads them.

Little-endian, from upstream's tools/perplexity/perplexity.cpp (``--save-all-logits``):

=====  ==========================================================================
 8     ``_logits_``
 4     tokens of a chunk; `CHUNK_TOKENS` with us
 4     V, how many tokens the vocabulary has
 4     C, chunks
 4 n   the text's tokens, C x `CHUNK_TOKENS` of them
 m     for each of the `SCORED` last positions of each chunk but the very last: float32
       scale, float32 least, V times uint16, one more where V is odd; the logarithm of a
       token's probability is least + scale x the number
=====  ==========================================================================

Ours ends with a trailer, which llama-perplexity does not read: eight bytes `_TRAILER`, and the
SHA-256 of all before. A file may come from another node, and bits rot: it is read as a whole, once,
before anything is measured with it.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

CHUNK_TOKENS = 512
SCORED = CHUNK_TOKENS - 1 - CHUNK_TOKENS // 2
# docs/experts.md argues for it: 0.9 GB at a vocabulary of 150 000.
TOKENS = 12 * CHUNK_TOKENS
VOCABULARY_MAX = 1 << 22
# llama-perplexity wants two at least, and so do we: the last does not count.
_CHUNKS_MIN = 2
_CHUNKS_MAX = 1 << 20

_HEADER = struct.Struct("<8siii")
HEADER_BYTES = _HEADER.size
_MAGIC = b"_logits_"
_TRAILER = b"meshd-1\n"
_TRAILER_BYTES = len(_TRAILER) + hashlib.sha256().digest_size
_ROWS_AT_ONCE = 15
_ROWS_BYTES = 8 << 20
# Upstream cuts what is e^16 times less likely than the likeliest, and leaves it at that.
_CUT = math.exp(-16)
_ROUNDING = 0.01


class LogitsError(ValueError):
    """It cannot be measured with this file; the message says why in one sentence."""


class DifferError(LogitsError):
    """They are not those of the model or the text that they are said to be of."""


@dataclass(frozen=True, slots=True)
class Header:
    """:ivar vocabulary: how many tokens there are. :ivar chunks: of `CHUNK_TOKENS` each."""

    vocabulary: int
    chunks: int

    @property
    def counted(self) -> int:
        """Chunks that a measurement counts: not the last, whose row may remain unsaid (see
        `perplexity_output`).
        """
        return self.chunks - 1

    @property
    def begin_bytes(self) -> int:
        """Header and the text's tokens."""
        return HEADER_BYTES + 4 * CHUNK_TOKENS * self.chunks

    @property
    def row_bytes(self) -> int:
        return 2 * (4 + self.vocabulary + self.vocabulary % 2)

    @property
    def written_bytes(self) -> int:
        """As llama-perplexity leaves it."""
        return self.begin_bytes + self.chunks * SCORED * self.row_bytes

    @property
    def file_bytes(self) -> int:
        return self.written_bytes + _TRAILER_BYTES


def logits_bytes(vocabulary: int, tokens: int = TOKENS) -> int:
    """What a file takes for so many tokens of a text; a shorter text has a shorter one."""
    return Header(vocabulary, chunks_of(tokens)).file_bytes


def chunks_of(tokens: int) -> int:
    return max(_CHUNKS_MIN, tokens // CHUNK_TOKENS)


def read_header(begin: bytes) -> Header:
    """:raises LogitsError: these are no logits, or were not computed as we do."""
    try:
        magic, chunk_tokens, vocabulary, chunks = _HEADER.unpack_from(begin)
    except struct.error:
        raise LogitsError("it ends within its header") from None
    if magic != _MAGIC:
        raise LogitsError("these are no logits")
    if chunk_tokens != CHUNK_TOKENS:
        raise LogitsError(f"they are of chunks of {chunk_tokens} tokens, not {CHUNK_TOKENS}")
    if not 0 < vocabulary <= VOCABULARY_MAX or not _CHUNKS_MIN <= chunks <= _CHUNKS_MAX:
        raise LogitsError(f"{chunks} chunks of {vocabulary} tokens cannot be")
    return Header(vocabulary, chunks)


def begin_of(path: Path) -> tuple[Header, bytes]:
    """Header and the text's tokens as they stand there.

    :raises LogitsError: these are no logits, or the file is too short for them.
    :raises OSError: it cannot be read.
    """
    with path.open("rb") as file:
        begin = file.read(HEADER_BYTES)
        header = read_header(begin)
        begin += file.read(header.begin_bytes - len(begin))
    if len(begin) < header.begin_bytes:
        raise LogitsError("it ends within its text")
    return header, begin


def check(
    path: Path,
    *,
    vocabulary: int | None = None,
    tokens: int = TOKENS,
    stopped: Callable[[], bool] = lambda: False,
) -> Header:
    """Read all of it: whole, undamaged, and each row a distribution.

    :param vocabulary: that it has to be of.
    :param stopped: asked now and then; then it is given up.
    :raises LogitsError: it is not to be believed.
    :raises OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        header, digest = _scan(file, vocabulary, tokens, stopped, _TRAILER_BYTES)
        if _exactly(file, _TRAILER_BYTES) != _TRAILER + digest:
            raise LogitsError("it was damaged: its checksum is another")
    return header


def seal(path: Path, *, tokens: int = TOKENS, stopped: Callable[[], bool] = lambda: False) -> None:
    """Check what llama-perplexity wrote, give it its trailer, and sync it.

    :raises LogitsError: it is not whole, or the model's probabilities are no numbers.
    :raises OSError: it cannot be read or written.
    """
    with path.open("r+b", buffering=0) as file:
        _, digest = _scan(file, None, tokens, stopped, 0)
        file.write(_TRAILER + digest)
        os.fsync(file.fileno())


def difference(theirs: bytes, ours: bytes) -> str:
    """Between what two files of logits begin with, for people."""
    there, here = read_header(theirs), read_header(ours)
    if there.vocabulary != here.vocabulary:
        return (
            f"it is of a vocabulary of {there.vocabulary} tokens, the model has {here.vocabulary}"
        )
    if there.chunks != here.chunks:
        return f"it has {there.chunks} chunks of the text, which has {here.chunks}"
    return "it is of another text, or of a model that cuts this one into other tokens"


def excerpt(path: Path, chunk: int, target: Path) -> None:
    """One chunk of it as a file that llama-perplexity reads, so that it computes no more than that.

    It wants two chunks at least: the second is a hole. :param target: overwritten.
    :raises LogitsError: these are no logits, or too few. :raises OSError: as for any file.
    """
    header, begin = begin_of(path)
    two = Header(header.vocabulary, _CHUNKS_MIN)
    first = HEADER_BYTES + 4 * CHUNK_TOKENS * chunk
    tokens = begin[first : first + 4 * CHUNK_TOKENS]
    rows_bytes = SCORED * header.row_bytes
    with path.open("rb") as source, target.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, CHUNK_TOKENS, two.vocabulary, two.chunks) + 2 * tokens)
        source.seek(header.begin_bytes + chunk * rows_bytes)
        left = rows_bytes
        while left:
            piece = _exactly(source, min(left, _ROWS_BYTES))
            file.write(piece)
            left -= len(piece)
        file.truncate(two.written_bytes)


def _scan(
    file: BinaryIO,
    vocabulary: int | None,
    tokens: int,
    stopped: Callable[[], bool],
    trailer_bytes: int,
) -> tuple[Header, bytes]:
    begin = _exactly(file, HEADER_BYTES)
    header = read_header(begin)
    if vocabulary is not None and header.vocabulary != vocabulary:
        raise LogitsError(
            f"it is of a vocabulary of {header.vocabulary} tokens, the model has {vocabulary}"
        )
    if header.chunks > chunks_of(tokens):
        raise LogitsError(f"it has {header.chunks} chunks, {chunks_of(tokens)} are wanted")
    size_bytes, has_bytes = header.written_bytes + trailer_bytes, os.fstat(file.fileno()).st_size
    if has_bytes != size_bytes:
        raise LogitsError(f"it has {has_bytes} bytes, not {size_bytes}")
    words = _exactly(file, header.begin_bytes - len(begin))
    ids = np.frombuffer(words, "<i4")
    if ids.min() < 0 or ids.max() >= header.vocabulary:
        raise LogitsError("its text has tokens that its vocabulary has not")
    digest = hashlib.sha256(begin + words)
    rows = header.chunks * SCORED
    at_once = max(1, min(_ROWS_AT_ONCE, _ROWS_BYTES // header.row_bytes))
    for first in range(0, rows, at_once):
        if stopped():
            raise LogitsError("it was given up")
        piece = _exactly(file, min(at_once, rows - first) * header.row_bytes)
        digest.update(piece)
        _distributions(piece, header)
    return header, digest.digest()


def _distributions(piece: bytes, header: Header) -> None:
    """:raises LogitsError: probabilities of a row are no numbers, or do not add up to 1."""
    rows = np.frombuffer(piece, "<u2").reshape(-1, header.row_bytes // 2)
    ends = np.ascontiguousarray(rows[:, :4]).view("<f4")
    scale, least = ends[:, :1], ends[:, 1:]
    if not (np.isfinite(ends).all() and (scale >= 0).all() and (least <= 0).all()):
        raise LogitsError("its probabilities are no numbers")
    with np.errstate(over="ignore"):
        sums = np.exp(rows[:, 4 : 4 + header.vocabulary] * scale + least).sum(axis=1)
    most = 1 + _ROUNDING + header.vocabulary * _CUT
    if not ((sums >= 1 - _ROUNDING) & (sums <= most)).all():
        raise LogitsError("its probabilities do not add up to 1")


def _exactly(file: BinaryIO, size_bytes: int) -> bytes:
    pieces = []
    while size_bytes > 0 and (piece := file.read(size_bytes)):
        pieces.append(piece)
        size_bytes -= len(piece)
    if size_bytes > 0:
        raise LogitsError("it ends too early")
    return b"".join(pieces)
