"""Another machine: a network namespace with one link to here, and sockets that are made in it."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, capture_output=True, timeout=10)


@dataclass(frozen=True)
class Elsewhere:
    """:ivar address: of this machine, as it is reached from there. :ivar own: its own."""

    name: str
    address: str
    own: str

    def socket(self, family: int = socket.AF_INET) -> socket.socket:
        """A TCP socket that lives there."""
        made: list[socket.socket | OSError] = []

        def make() -> None:
            # A thread of its own, which ends in that network.
            try:
                with Path(f"/run/netns/{self.name}").open("rb") as space:
                    if _LIBC.setns(space.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(socket.socket(family, socket.SOCK_STREAM))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join(10)
        (result,) = made
        if isinstance(result, OSError):
            raise result
        result.setblocking(False)
        return result

    @asynccontextmanager
    async def client(
        self, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[aiohttp.ClientSession]:
        """:param context: for TLS."""
        connector = aiohttp.TCPConnector(
            socket_factory=lambda info: self.socket(info[0]),
            limit=0,
            force_close=True,
            ssl=context or True,
        )
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            yield http

    @asynccontextmanager
    async def connection(self, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Pair]:
        """To this machine, for hands of its own."""
        made = self.socket()
        try:
            async with asyncio.timeout(10):
                await asyncio.get_running_loop().sock_connect(made, (self.address, port))
                reader, writer = await asyncio.open_connection(
                    sock=made, ssl=tls, server_hostname=self.address if tls else None
                )
        except BaseException:
            made.close()
            raise
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def fall_silent(self) -> None:
        """It answers nothing any more, and says no goodbye, as when its cable is cut."""
        _ip("-n", self.name, "address", "flush", "dev", "far")


@contextmanager
def another_machine() -> Iterator[Elsewhere]:
    """Skips the test where none can be made."""
    number = next(_numbers)
    name = f"el{os.getpid() % 1_000_000}{number}"
    net = f"10.95.{os.getpid() % 250}"
    here, there = f"{net}.{4 * number + 1}", f"{net}.{4 * number + 2}"
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
        _ip("address", "add", f"{here}/30", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "address", "add", f"{there}/30", "dev", "far")
        _ip("-n", name, "link", "set", "far", "up")
        yield Elsewhere(name, here, there)
    finally:
        for words in (("netns", "delete", name), ("link", "delete", name)):
            subprocess.run(("ip", *words), check=False, capture_output=True, timeout=10)


async def exchange(pair: Pair, request: bytes, within_s: float = 10) -> bytes:
    """Send it, and read until the other end hangs up; what came before it reset the connection."""
    reader, writer = pair
    writer.write(request)
    heard = b""
    async with asyncio.timeout(within_s):
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                heard += piece
    return heard


def port_of(node: Any) -> int:
    """Of a running gateway."""
    return int(node.base.rpartition(":")[2])
