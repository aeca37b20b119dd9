"""What two guards say to each other besides RPC: lines of JSON, at most 1 KiB each.

The host's end speaks first, once TLS has shown both who is there: `Greeting`, answered by
`Welcome`. A connection for ``rpc`` carries RPC from then on. One for ``control`` carries a `Ping`
every half second and a `Pong` to each, so that a dead, frozen or cut-off guard is noticed whatever
the engines are doing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import msgspec

VERSION = 1
LINE_BYTES = 1024


class Want(StrEnum):
    RPC = "rpc"
    CONTROL = "control"


class Greeting(msgspec.Struct, frozen=True):
    """:ivar group: random, of this guard's life: connections with the same one belong together.

    :ivar split: for the log.
    """

    want: Want
    term: int
    group: str
    split: str = ""
    version: int = VERSION


class Welcome(msgspec.Struct, frozen=True):
    """:ivar problem: why the connection is refused, "" when it is not."""

    problem: str = ""


class Ping(msgspec.Struct, frozen=True):
    """:ivar number: counts up; a pong repeats it."""

    number: int


class Pong(msgspec.Struct, frozen=True):
    """:ivar answers: rpc-server does, and would take a connection.

    :ivar protocol: that it announced. :ivar problem: why it does not.
    """

    number: int
    answers: bool
    protocol: str = ""
    problem: str = ""


Message = TypeVar("Message", Greeting, Welcome, Ping, Pong)


def encode(message: Greeting | Welcome | Ping | Pong) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes, kind: type[Message]) -> Message:
    """:raises ValueError: it is no such message."""
    return msgspec.json.decode(line, type=kind)
