"""What an engine prints, kept in two files of bounded size and as its last lines in memory."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path

_LINE_LIMIT = 500
_TELLING = re.compile(r"\b(error|failed|fail|cannot|unable|abort\w*|invalid|assert\w*)\b", re.I)


def telling_line(lines: Sequence[str]) -> str:
    """The line that most likely says why an engine ended: the last that speaks of an error.

    >>> telling_line(["loading", "error: no such file", "bye"])
    'error: no such file'
    """
    return next((line for line in reversed(lines) if _TELLING.search(line)), "")


class EngineLog:
    """A log file that is renamed to ``.1`` when it is full, so it never takes more than twice that.

    :param limit_bytes: of one file.
    """

    def __init__(self, path: Path, *, limit_bytes: int = 4 * 1024 * 1024) -> None:
        self.path = path
        self._limit_bytes = limit_bytes
        self._lines: deque[str] = deque(maxlen=40)
        self._part = b""

    @property
    def lines(self) -> tuple[str, ...]:
        part = self._part.decode(errors="replace").strip()
        return (*self._lines, part) if part else tuple(self._lines)

    def forget(self) -> None:
        """Start a new process's lines; the file goes on."""
        self._lines.clear()
        self._part = b""

    def remember(self, data: bytes) -> None:
        """Keep the last lines of what was printed."""
        *whole, self._part = (self._part + data).split(b"\n")
        self._part = self._part[:_LINE_LIMIT]
        self._lines.extend(line[:_LINE_LIMIT].decode(errors="replace").strip() for line in whole)

    def write(self, data: bytes) -> None:
        """Append to the file. Blocks; call it from a thread.

        :raises OSError: when the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(data), self._limit_bytes):
            piece = data[start : start + self._limit_bytes]
            size = self.path.stat().st_size if self.path.exists() else 0
            if size and size + len(piece) > self._limit_bytes:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            with self.path.open("ab") as file:
                file.write(piece)
