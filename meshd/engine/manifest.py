"""What an engine root says of itself: the packages it was made from and where it was put."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from meshd.files import write_atomically

FILE = "meshd-engine.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """:ivar prefix: absolute path that the executables' interpreter names.

    :ivar packages: Debian package name to version.
    """

    prefix: str
    suite: str
    packages: dict[str, str]


def read_manifest(root: Path) -> Manifest | None:
    """None where there is none, or none that can be read: the root is then just files."""
    try:
        return msgspec.json.decode((root / FILE).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def write_manifest(root: Path, manifest: Manifest) -> None:
    write_atomically(root / FILE, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
