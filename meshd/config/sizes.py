"""Sizes as people write them: ``512MiB`` (powers of 1024) or ``2GB`` (powers of 1000)."""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)([A-Za-z]+)")


def parse_size(text: str) -> int:
    """Bytes of a size such as ``1.5GiB``, rounded down.

    :raises ValueError: not a size.
    """
    found = _SIZE.fullmatch(text)
    if not found or found.group(2) not in _UNITS:
        raise ValueError(f"{text!r} is not a size")
    return int(Decimal(found.group(1)) * _UNITS[found.group(2)])


def format_size(size_bytes: int) -> str:
    """Write bytes in the largest unit that shows them exactly: ``1536MiB``, ``2GB``, ``7B``."""
    for unit in ("TiB", "GiB", "TB", "MiB", "GB", "MB", "KiB", "KB"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return f"{size_bytes}B"
