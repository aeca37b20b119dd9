"""What of an unfinished file surely lies on the disk, so that a later run goes on from there.

A line says: so many bytes from the beginning are on the disk, and this is their SHA-256. It is
written after the bytes were synced. What was written since is written again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_BYTES_MAX = 1 << 20
_DIGEST_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """:ivar sha256: of the file's first `end` bytes."""

    end: int
    sha256: str


class WriteJournal:
    """:param identity: of what is being written; the journal of something else counts for nothing.

    :raises OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._file = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )  # fmt: skip
        self._identity = identity
        self.checkpoints = _parsed(os.pread(self._file, _BYTES_MAX, 0), identity)

    def keep(self, count: int) -> None:
        """Forget all but the first so many checkpoints."""
        self.checkpoints = self.checkpoints[:count]
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        lines = [self._identity, *(f"{one.end} {one.sha256}" for one in self.checkpoints)]
        os.write(self._file, "".join(f"{line}\n" for line in lines).encode())

    def add(self, one: Checkpoint) -> None:
        self.checkpoints = (*self.checkpoints, one)
        os.write(self._file, f"{one.end} {one.sha256}\n".encode())

    def close(self) -> None:
        os.close(self._file)


def _parsed(text: bytes, identity: str) -> tuple[Checkpoint, ...]:
    """Up to the first line that is not whole; none of another file's."""
    first, *lines = text.split(b"\n")
    if first != identity.encode():
        return ()
    found: list[Checkpoint] = []
    for line in lines[:-1]:
        end, _, digest = line.decode(errors="replace").partition(" ")
        last = found[-1].end if found else 0
        if not (end.isascii() and end.isdigit() and len(end) < 20 and int(end) > last
                and len(digest) == _DIGEST_DIGITS):  # fmt: skip
            break
        found.append(Checkpoint(int(end), digest))
    return tuple(found)
