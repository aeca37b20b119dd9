"""Reading a file that holds a secret: small, regular, and not open to the wrong people."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from meshd.errors import UserError

_MAX_BYTES = 16 * 1024


def read_private(path: Path, *, forbidden: int) -> bytes:
    """The file's content.

    :param forbidden: bits of its mode that must not be set, such as 0o077.

    :raises FileNotFoundError: there is none.
    :raises UserError: it cannot be read, is no file, is too large, or others may read it.
    """
    try:
        # Not to hang on a pipe that somebody put there.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check(path, os.fstat(descriptor).st_mode, forbidden)
            data = os.read(descriptor, _MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}",
            hint=f"ls -l {path.parent}",
        ) from error
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path}: has more than {_MAX_BYTES // 1024} KiB, so it is not a secret")
    return data


def _check(path: Path, mode: int, forbidden: int) -> None:
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is not a file")
    if mode & forbidden:
        rights = stat.S_IMODE(mode)
        raise UserError(
            f"{path}: mode {rights:04o} lets others at it",
            hint=f"chmod {rights & ~forbidden:04o} {path}; they may have read it",
        )


def credential(name: str, folder: str | None) -> Path | None:
    """Where systemd put the credential `name`, or None where it passed none.

    :param folder: ``$CREDENTIALS_DIRECTORY`` (systemd.exec(5)).
    """
    if not folder:
        return None
    path = Path(folder) / name
    return path if path.exists() else None
