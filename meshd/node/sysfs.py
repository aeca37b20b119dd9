"""Reading the kernel's small files: an absent or unreadable one is None, never an exception."""

from __future__ import annotations

from pathlib import Path

MAX_BYTES = 1024 * 1024


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes | None:
    """The first ``max_bytes`` of a file, None where there is nothing to read.

    Attributes can fail while they exist: a driver that is going away answers EIO or ENODEV.
    """
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except (OSError, ValueError):
        return None


def read_text(path: Path) -> str | None:
    """A file's text without surrounding white space."""
    content = read_bytes(path)
    return None if content is None else content.decode("utf-8", "replace").strip("\0 \t\r\n")


def read_number(path: Path) -> int | None:
    """A decimal or ``0x`` number, None where the file holds anything else."""
    return parse_number(read_text(path))


def parse_number(text: str | None) -> int | None:
    if not text:
        return None
    try:
        return int(text, 16) if text.lower().startswith("0x") else int(text, 10)
    except ValueError:
        return None
