"""The commands of ggml's RPC, protocol 8, and what a guard needs to know of each.

A request is one byte of command, eight of length (little endian), and so much payload; an answer
is eight bytes of length and the payload, without saying to what. Numbers up to 17 are those of
``enum rpc_cmd`` in ggml-rpc.cpp of llama.cpp 0.5.0 (protocol 7); the rest, and which of them are
answered, was read off a llama-server 0.7.0 that talked to a ggml-rpc-server through a relay.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from meshd.errors import UserError

Triple = tuple[int, int, int]

# Those that this table describes. A major number promises nothing about the next one.
KNOWN_MAJORS = (8,)

HELLO_BYTES = 24
HELLO_ANSWER_BYTES = 28
# rpc_tensor, packed: where ne[4] and nb[4], u32 each, lie in its 296 bytes.
TENSOR_NE_OFFSET, TENSOR_NB_OFFSET = 20, 36

_SMALL = 64 * 1024
_GRAPH = 256 * 1024**2
_TENSOR = 64 * 1024**3


class Command(IntEnum):
    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    SET_TENSOR_HASH = 7
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    INIT_TENSOR = 12
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16
    MEMSET_TENSOR = 17
    SET_TENSOR_2D = 18
    GET_TENSOR_2D = 19


@dataclass(frozen=True, slots=True)
class Rule:
    """:ivar most: bytes that a request's payload may have. :ivar answer: the answer's, likewise;
    None for a command without an answer.
    :ivar graph: it computes. :ivar data: it brings a tensor. :ivar read: the guard looks at it.
    """

    command: Command
    most: int
    answer: int | None = None
    graph: bool = False
    data: bool = False
    read: bool = False

    @property
    def urgent(self) -> bool:
        """rpc-server has something to do, or somebody waits."""
        return self.graph or self.answer is not None

    @property
    def label(self) -> str:
        return self.command.name.lower()


# By number. COMM_INIT, COMM_ALLREDUCE and COMM_FREE (20 to 22) are missing on purpose: they are for
# tensor splits, and make rpc-servers open ports of their own that no door stands before.
RULES: tuple[Rule, ...] = (
    Rule(Command.ALLOC_BUFFER, _SMALL, _SMALL, read=True),
    Rule(Command.GET_ALIGNMENT, _SMALL, _SMALL),
    Rule(Command.GET_MAX_SIZE, _SMALL, _SMALL),
    Rule(Command.BUFFER_GET_BASE, _SMALL, _SMALL),
    Rule(Command.FREE_BUFFER, _SMALL),
    Rule(Command.BUFFER_CLEAR, _SMALL),
    Rule(Command.SET_TENSOR, _TENSOR, data=True),
    Rule(Command.SET_TENSOR_HASH, _SMALL, _SMALL, read=True),
    Rule(Command.GET_TENSOR, _SMALL, _TENSOR),
    Rule(Command.COPY_TENSOR, _SMALL, _SMALL),
    Rule(Command.GRAPH_COMPUTE, _GRAPH, graph=True),
    Rule(Command.GET_DEVICE_MEMORY, _SMALL, _SMALL),
    Rule(Command.INIT_TENSOR, _SMALL),
    Rule(Command.GET_ALLOC_SIZE, _SMALL, _SMALL),
    Rule(Command.HELLO, HELLO_BYTES, HELLO_ANSWER_BYTES),
    Rule(Command.DEVICE_COUNT, 0, _SMALL),
    Rule(Command.GRAPH_RECOMPUTE, _SMALL, graph=True),
    Rule(Command.MEMSET_TENSOR, _SMALL),
    Rule(Command.SET_TENSOR_2D, _TENSOR, data=True),
    Rule(Command.GET_TENSOR_2D, _SMALL, _TENSOR),
)


def words(triple: Triple) -> str:
    return ".".join(map(str, triple))


def parse_triple(text: str) -> Triple:
    """:raises UserError: it is not like ``8.0.0``."""
    parts = text.split(".")
    if len(parts) == 3 and all(part.isascii() and part.isdigit() for part in parts):
        major, minor, patch = (int(part) for part in parts)
        if max(major, minor, patch) <= 255:
            return major, minor, patch
    raise UserError(f"{text!r} is not a protocol version", hint="it is like 8.0.0")


def major_problem(expected: Triple) -> str:
    """Why this guard can pass nothing of this protocol, "" when it can."""
    if expected[0] in KNOWN_MAJORS:
        return ""
    known = ", ".join(map(str, KNOWN_MAJORS))
    newer = expected[0] > max(KNOWN_MAJORS)
    return (
        f"the engine speaks RPC protocol {words(expected)}, this meshd knows only major {known}: "
        f"nothing is passed; upgrade {'meshd' if newer else 'the engine (llama.cpp)'} on this node"
    )


def triple_problem(expected: Triple, found: Triple) -> str:
    """Why a server that announced `found` must not be used, "" when it may.

    The client itself ignores the patch number, although the numbers of operations change with it.
    """
    if found == expected:
        return ""
    older = "member" if found < expected else "host"
    return (
        f"rpc-server speaks protocol {words(found)}, {words(expected)} is expected: "
        f"upgrade the engine (llama.cpp) on the {older}, so that both have the same build"
    )
