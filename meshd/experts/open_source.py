"""A file of a model, open for as long as something is made of it, and seen to stay as it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from meshd.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How a file system says that it takes no more."""


class ChangedError(UserError):
    """The source is not what it was, so what was written is of no use."""


class OpenSource:
    """A file of the model, open, and how it was when it was opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from error
        self.signature = self._signature(os.fstat(self._file))

    def __enter__(self) -> OpenSource:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    @staticmethod
    def _signature(status: os.stat_result) -> tuple[int, int, int]:
        return status.st_size, status.st_mtime_ns, status.st_ino

    def send(self, output: int, start: int, size: int) -> None:
        """Write a part of it where `output` stands."""
        while size:
            try:
                count = os.sendfile(output, self._file, start, size)
            except OSError as error:
                if error.errno in FULL:
                    raise
                raise UserError(f"{self.path}: {error.strerror or error}") from error
            if not count:
                raise self._changed()
            start, size = start + count, size - count

    def check_unchanged(self) -> None:
        try:
            found = Path(self.path).stat()
        except OSError as error:
            raise self._changed() from error
        if not self._signature(found) == self._signature(os.fstat(self._file)) == self.signature:
            raise self._changed()

    def _changed(self) -> ChangedError:
        return ChangedError(
            f"{self.path}: it changed while a shard was made of it",
            hint="it is begun anew from what is there now",
        )
