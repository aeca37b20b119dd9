"""Callers that a door has to bear: strangers, garbage, silence, hello and gone."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from meshd.guard.greeting import Greeting, Want, encode
from meshd.guard.hello import HELLO_REQUEST
from meshd.mesh.tls import client_context

_AT_ONCE = 8
# A silent caller holds its connection for so long.
_IDLE_S = 0.3
_DEADLINE_S = 8.0

Probe = Callable[[], Awaitable[None]]


def probes(door: int, local: int, stranger: Path, member: Path, term: int) -> dict[str, Probe]:
    """:param stranger: certificate of another mesh. :param member: of this mesh and this host."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    other = client_context(stranger)
    other.check_hostname = False
    other.verify_mode = ssl.CERT_NONE
    own = client_context(member)
    own.check_hostname = False
    greeting = encode(Greeting(Want.RPC, term, "rude"))
    return {
        "door: connect and hang up": lambda: _say(door, b""),
        "door: silent": lambda: _say(door, b"", idle=True),
        "door: garbage": lambda: _say(door, bytes(range(256)) * 8, idle=True),
        "door: hello without TLS, gone": lambda: _say(door, HELLO_REQUEST),
        "door: TLS without certificate": lambda: _say(door, HELLO_REQUEST, anyone),
        "door: certificate of another mesh": lambda: _say(door, greeting + HELLO_REQUEST, other),
        "door: right certificate, silent": lambda: _say(door, b"", own, idle=True),
        "door: right certificate, hello, gone": lambda: _say(door, greeting + HELLO_REQUEST, own),
        "local: connect and hang up": lambda: _say(local, b""),
        "local: silent": lambda: _say(local, b"", idle=True),
        "local: garbage": lambda: _say(local, bytes(range(256)) * 8, idle=True),
        "local: hello, gone": lambda: _say(local, HELLO_REQUEST),
        "local: hello, silent": lambda: _say(local, HELLO_REQUEST, idle=True),
    }


async def be_rude(all_probes: dict[str, Probe], count: int) -> None:
    """So many calls, a few at once, each kind in its turn."""
    kinds = list(all_probes.values())
    waiting = iter(range(count))

    async def caller() -> None:
        for number in waiting:
            with suppress(OSError, EOFError, TimeoutError):
                async with asyncio.timeout(_DEADLINE_S):
                    await kinds[number % len(kinds)]()

    await asyncio.gather(*(caller() for _ in range(_AT_ONCE)))


async def _say(
    port: int, data: bytes, tls: ssl.SSLContext | None = None, *, idle: bool = False
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        if data:
            writer.write(data)
            await writer.drain()
        if idle:
            with suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_S):
                    await reader.read()
    finally:
        writer.transport.abort()
