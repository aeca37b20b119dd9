"""The two files between brain and hand: what is wanted, and what came of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

import msgspec

from meshd.errors import UserError
from meshd.files import write_atomically
from meshd.units.spec import Desired, Outcome

RESULT = Path("/run/mesh-apply/result.json")
MAX_BYTES = 1024 * 1024


def read_desired(path: Path, owners: Collection[int]) -> Desired:
    """What the brain wants.

    :param owners: user ids whose word counts.
    :raises UserError: not a plain file of theirs, too large, or not what it should be.
    """
    data = _read(path, owners)
    try:
        return msgspec.json.decode(data, type=Desired, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error


def read_outcome(path: Path) -> Outcome | None:
    """The hand's last answer; None when there is none that can be read."""
    try:
        return msgspec.json.decode(_read(path, None), type=Outcome, strict=True)
    except (UserError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write_desired(path: Path, desired: Desired) -> None:
    """:raises UserError: too much to be read back. :raises OSError: the folder is not there."""
    data = msgspec.json.encode(desired)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: {len(data)} bytes of engines are more than {MAX_BYTES}")
    write_atomically(path, data)


def write_outcome(path: Path, outcome: Outcome) -> None:
    write_atomically(path, msgspec.json.encode(outcome))


def _read(path: Path, owners: Collection[int] | None) -> bytes:
    # Neither a link to somewhere else nor a pipe without a writer may stop or mislead the reader.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path}: not a regular file")
        if owners is not None and (about.st_uid not in owners or about.st_mode & 0o022):
            raise UserError(f"{path}: may be written by others than meshd (user {about.st_uid})")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES} bytes")
    return data
