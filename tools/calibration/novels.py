"""The novels in the R package janeaustenr: lists of lines in R's serialised form.

Format: "R Internals", sections 1.8 (serialisation, XDR) and 1.13.1 (lazy-load databases): zlib
streams, each after its unpacked length, of a header and, here, one vector of strings.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_STRINGS = 16
_STRING = 9
_SEGMENT_CHARACTERS = 40_000


def novels(database: Path) -> Iterator[tuple[str, list[str]]]:
    """Title and text of each, the text in segments that end with a paragraph."""
    data = database.read_bytes()
    while data:
        stream = zlib.decompressobj()
        lines = _lines(stream.decompress(data[4:]))
        data = stream.unused_data
        segments = [""]
        for paragraph in "\n".join(lines).split("\n\n"):
            if len(segments[-1]) > _SEGMENT_CHARACTERS:
                segments.append("")
            segments[-1] += paragraph.strip("\n") + "\n\n"
        yield lines[0], segments


def _lines(data: bytes) -> list[str]:
    mark, version, encoding = data[:2], _int(data, 2), _int(data, 14)
    if mark != b"X\n" or version != 3:
        raise ValueError("this is not R's serialisation of version 3")
    at = 18 + encoding
    if _int(data, at) & 0xFF != _STRINGS:
        raise ValueError("this holds no strings")
    count = _int(data, at + 4)
    at += 8
    lines = []
    for _ in range(count):
        if _int(data, at) & 0xFF != _STRING:
            raise ValueError("this holds more than strings")
        length = max(0, _int(data, at + 4))
        lines.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return lines


def _int(data: bytes, at: int) -> int:
    return int(struct.unpack_from(">i", data, at)[0])
