"""Asks an rpc-server which protocol it speaks, the one way that does it no harm.

It dies of a client that says hello and does not read the answer, and serves nobody else while a
connection is open: so a whole exchange, quickly, and only while nobody is connected.
"""

from __future__ import annotations

import struct

from meshd.gateway.listen import Address
from meshd.guard.commands import HELLO_ANSWER_BYTES, Command, Triple
from meshd.guard.hello import HELLO_REQUEST
from meshd.guard.wire import Wire, connect

_DEVICE_COUNT = struct.pack("<BQ", Command.DEVICE_COUNT, 0)
_COUNT_BYTES = 4


async def probe(address: Address) -> Triple:
    """The protocol that it announces. To be bounded by the caller.

    :raises OSError: nobody listens, or the connection broke. :raises EOFError: it hung up.
    :raises ValueError: it is no rpc-server.
    """
    wire = await connect(address)
    try:
        await wire.write(HELLO_REQUEST)
        hello = await _answer(wire, HELLO_ANSWER_BYTES)
        await wire.write(_DEVICE_COUNT)
        await _answer(wire, _COUNT_BYTES)
    finally:
        wire.close()
    return hello[0], hello[1], hello[2]


async def _answer(wire: Wire, size: int) -> bytes:
    (length,) = struct.unpack("<Q", await wire.exactly(8))
    if length != size:
        raise ValueError(f"it answers {length} bytes where {size} belong: no rpc-server?")
    return await wire.exactly(size)
