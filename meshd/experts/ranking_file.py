"""A ranking as the small JSON file that nodes keep and fetch from each other.

Only the bytes that `encode` itself would write are believed, their own SHA-256 included. So a file
that was cut, edited or damaged is refused whatever it is that changed, a key that is there twice
among it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec

from meshd.experts.ranking import Ranking, RankingError
from meshd.files import write_atomically

VERSION = 1
# 94 layers of 128 experts take 100 KB, 128 of 512 half a MiB.
BYTES_MAX = 1 << 20

_Digits = Annotated[str, msgspec.Meta(pattern="^[0-9a-z]{1,64}$")]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]


class _Version(msgspec.Struct):
    version: int


class _Counted(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    fingerprint: _Digits
    calibration: _Digits
    tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 48)]
    counts: tuple[tuple[_Count, ...], ...]


class _File(_Counted, forbid_unknown_fields=True):
    sha256: str


def encode(ranking: Ranking) -> bytes:
    """The file's content."""
    content = (VERSION, ranking.fingerprint, ranking.calibration, ranking.tokens, ranking.counts)
    sha256 = hashlib.sha256(msgspec.json.encode(_Counted(*content))).hexdigest()
    return msgspec.json.encode(_File(*content, sha256))


def decode(text: bytes, *, fingerprint: str, experts: tuple[int, ...], used: int = 0) -> Ranking:
    """Read what `encode` wrote.

    :param experts: routed experts of each of the model's blocks, 0 of one without.
    :param used: of them for each token; 0 where that is not known.
    :raises RankingError: it is not believed, or is no ranking of this model.
    """
    if len(text) > BYTES_MAX:
        raise RankingError(f"the ranking has {len(text)} bytes, more than the {BYTES_MAX} allowed")
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version != VERSION:
            raise RankingError(f"the ranking has version {version}; known is {VERSION}")
        file = msgspec.json.decode(text, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RankingError(f"this is no ranking: {error}") from None
    ranking = Ranking(file.fingerprint, file.calibration, file.tokens, file.counts)
    if encode(ranking) != text:
        raise RankingError("the ranking is damaged: its bytes are not those that were written")
    return checked(ranking, fingerprint=fingerprint, experts=experts, used=used)


def checked(
    ranking: Ranking, *, fingerprint: str, experts: tuple[int, ...], used: int = 0
) -> Ranking:
    """The ranking, if this model's router can have made these choices.

    :raises RankingError: it cannot.
    """
    if ranking.fingerprint != fingerprint:
        raise RankingError(
            f"the ranking is of another model ({ranking.fingerprint}, not {fingerprint})"
        )
    if len(ranking.counts) != len(experts):
        raise RankingError(
            f"the ranking has {len(ranking.counts)} layers, the model {len(experts)}"
        )
    if not any(experts):
        raise RankingError("the model has no routed experts")
    for block, (layer, wanted) in enumerate(zip(ranking.counts, experts, strict=True)):
        if len(layer) != wanted:
            raise RankingError(
                f"the ranking has {len(layer)} experts in layer {block}, the model {wanted}"
            )
        if not wanted:
            continue
        choices = sum(layer)
        if choices == 0:
            raise RankingError(f"the ranking counted nothing in layer {block}")
        # Each token chooses equally many in every layer, and none of them twice.
        each = choices // ranking.tokens
        used = used or each
        if choices != used * ranking.tokens or used > wanted or max(layer) > ranking.tokens:
            raise RankingError(
                f"the ranking's choices in layer {block} are not those of {ranking.tokens} tokens"
            )
    return ranking


def read(path: Path, *, fingerprint: str, experts: tuple[int, ...], used: int = 0) -> Ranking:
    """As `decode`. :raises RankingError: likewise, and where the file cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise RankingError(f"{path}: {error.strerror or error}") from error
    try:
        return decode(text, fingerprint=fingerprint, experts=experts, used=used)
    except RankingError as error:
        raise RankingError(f"{path}: {error}") from None


def write(path: Path, ranking: Ranking) -> None:
    """In one step. :raises OSError: the folder cannot be written."""
    write_atomically(path, encode(ranking))
