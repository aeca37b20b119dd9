"""How far counting came, kept beside it: the pieces that were counted outlive whatever happens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from meshd.experts.imatrix_run import CHUNK_TOKENS, Span
from meshd.files import write_atomically

Counts = tuple[tuple[int, ...], ...]

_SUFFIX = ".counting"
# Of so many models at most; each is some hundred KB.
_KEPT = 4
_BYTES_MAX = 32 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """:ivar span: what was asked for. :ivar chunks: as many as the text had of them.

    :ivar counts: by block and expert; () where there were none.
    """

    span: Span
    chunks: int
    counts: Counts


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    pieces: tuple[Piece, ...]


class Counting:
    """Counts by span, in memory and in a file that can be thrown away at any time.

    :ivar path: of the file.
    """

    def __init__(self, folder: Path, key: str, experts: tuple[int, ...]) -> None:
        """Take up what is there under this key; a file that is damaged is as good as none."""
        self.path = folder / f"{key}{_SUFFIX}"
        self._pieces = tuple(one for one in _read(self.path) if _possible(one, experts))

    def get(self, span: Span) -> Piece | None:
        for one in self._pieces:
            if span in (one.span, Span(one.span.text, one.span.first, one.chunks)):
                return one
        return None

    def put(self, piece: Piece) -> None:
        """:raises OSError: it cannot be written."""
        self._pieces += (piece,)
        file = _File(_sha256(self._pieces), self._pieces)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, msgspec.json.encode(file))
        _forget_oldest(self.path)


def _sha256(pieces: tuple[Piece, ...]) -> str:
    return hashlib.sha256(msgspec.json.encode(pieces)).hexdigest()


def _read(path: Path) -> tuple[Piece, ...]:
    try:
        with path.open("rb") as file:
            text = file.read(_BYTES_MAX + 1)
        if len(text) > _BYTES_MAX:
            return ()
        found = msgspec.json.decode(text, type=_File)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return found.pieces if found.sha256 == _sha256(found.pieces) else ()


def _possible(piece: Piece, experts: tuple[int, ...]) -> bool:
    if not piece.chunks:
        return not piece.counts
    return len(piece.counts) == len(experts) and all(
        not layer or (len(layer) == wanted and sum(layer) >= piece.chunks * CHUNK_TOKENS)
        for layer, wanted in zip(piece.counts, experts, strict=True)
    )


def _forget_oldest(newest: Path) -> None:
    others = [one for one in newest.parent.glob(f"*{_SUFFIX}") if one != newest]
    others.sort(key=lambda one: one.stat().st_mtime, reverse=True)
    for one in others[_KEPT - 1 :]:
        one.unlink(missing_ok=True)
