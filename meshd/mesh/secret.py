"""The mesh's shared secret: whoever holds it may admit nodes. One line of text in a file."""

from __future__ import annotations

import base64
import math
import os
import secrets
import string
from collections.abc import Mapping
from pathlib import Path

from meshd.errors import UserError
from meshd.mesh.new_file import create_atomically
from meshd.mesh.private_file import credential, read_private

CREDENTIAL = "mesh.secret"
_LEAST_BITS = 128
_LEAST_DISTINCT = 8
_MORE = "`meshd mesh secret` prints a good one"
_ALPHABETS = (
    string.digits,
    string.digits + "abcdef",
    string.digits + "ABCDEF",
    string.ascii_lowercase,
    string.ascii_uppercase,
    string.digits + string.ascii_lowercase,
    string.digits + string.ascii_uppercase,
    string.ascii_letters,
    string.digits + string.ascii_letters,
)


def new_secret() -> str:
    """160 random bits as base32 in groups of four, one line."""
    text = base64.b32encode(secrets.token_bytes(20)).decode().lower()
    return "-".join(text[start : start + 4] for start in range(0, len(text), 4))


def read_secret(path: Path, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The secret, or None where there is none: the node is then alone.

    The systemd credential ``mesh.secret`` wins over the file.

    :raises UserError: everybody may read it, it cannot be read, or it is too weak.
    """
    passed = credential(CREDENTIAL, environment.get("CREDENTIALS_DIRECTORY"))
    place = passed or path
    try:
        # The file belongs to root and the group _meshd, so the group may read it.
        data = read_private(place, forbidden=0o007)
    except FileNotFoundError:
        return None
    return parse_secret(data, str(place))


def parse_secret(data: bytes, place: str) -> bytes:
    """The secret in a file's bytes, without the white space around it.

    :param place: the file, for the error.

    :raises UserError: it is not one line of printable ASCII, or has less than 128 bits.
    """
    line = data.strip()
    if not line:
        raise UserError(f"{place}: is empty", hint=_MORE)
    if not all(0x21 <= byte <= 0x7E for byte in line):
        raise UserError(f"{place}: is not one line of letters, digits and signs", hint=_MORE)
    text = line.decode("ascii")
    if strength_bits(text) < _LEAST_BITS:
        raise UserError(f"{place}: can be guessed: it has less than {_LEAST_BITS} bits", hint=_MORE)
    return line


def strength_bits(text: str) -> float:
    """At most how many bits a random text of this look has; 0 for a pattern.

    An upper bound: it refuses what is surely weak and cannot know what a person made up.
    """
    letters = text.replace("-", "").replace("_", "")
    repeats = bool(letters) and (letters * 2).find(letters, 1) < len(letters)
    if repeats or len(set(letters)) < _LEAST_DISTINCT:
        return 0.0
    used = set(letters)
    size = next((len(set(known)) for known in _ALPHABETS if used <= set(known)), 94)
    return len(letters) * math.log2(size)


def write_secret(path: Path, text: str, *, group: int | None) -> None:
    """A new secret's file, for root and one group only.

    :param group: gid that may read it; None for root alone.

    :raises UserError: there is one already, or it cannot be written.
    """
    try:
        create_atomically(
            path, f"{text}\n".encode(), mode=0o600 if group is None else 0o640, group=group
        )
    except FileExistsError as error:
        raise UserError(
            f"{path}: exists, and is left as it is",
            hint="to make a new mesh, move it away on every node first",
        ) from error
    except OSError as error:
        hint = "run as root" if isinstance(error, PermissionError) else f"ls -ld {path.parent}"
        raise UserError(f"{path}: cannot be written: {error.strerror}", hint=hint) from error
