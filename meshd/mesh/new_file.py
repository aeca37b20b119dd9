"""Making a file that must not exist yet, in one step: the first of two writers wins."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def create_atomically(path: Path, data: bytes, *, mode: int, group: int | None = None) -> None:
    """Put `data` into a new file; nobody ever sees a part of it, or it with wider rights.

    :param group: gid that it belongs to; None for the writer's own.

    :raises FileExistsError: it is there already, and is left as it is.
    :raises OSError: the folder cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if group is not None:
                os.fchown(file.fileno(), -1, group)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        # A rename would replace a file that another process made meanwhile; a link does not.
        os.link(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
