"""The first request of every RPC connection, told from garbage before anything is passed on."""

from __future__ import annotations

import struct

from meshd.guard.commands import HELLO_BYTES, Command

_HEAD = struct.pack("<BQ", Command.HELLO, HELLO_BYTES)
HELLO_REQUEST_BYTES = len(_HEAD) + HELLO_BYTES
HELLO_REQUEST = _HEAD + bytes(HELLO_BYTES)


def is_hello(data: bytes) -> bool:
    return len(data) >= HELLO_REQUEST_BYTES and data.startswith(_HEAD)
