"""Who was thrown out, kept over restarts: a node that starts alone must know it as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from meshd.errors import UserError
from meshd.files import write_atomically

_MOST_BYTES = 1024 * 1024


def read_revocations(path: Path) -> tuple[bytes, ...]:
    """As they travel; each is checked by its signature, so a damaged file only lacks some.

    :raises UserError: it is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            return tuple(msgspec.msgpack.decode(file.read(_MOST_BYTES), type=list[bytes]))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", hint=f"ls -l {path}") from None
    except msgspec.MsgspecError:
        return ()


def write_revocations(path: Path, sealed: Sequence[bytes]) -> None:
    """:raises OSError: the folder cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.msgpack.encode(list(sealed)), mode=0o600)
