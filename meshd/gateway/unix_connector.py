"""Connects to an engine's Unix socket, patiently when its backlog is full.

A Unix socket whose backlog is full answers EAGAIN (connect(2), unix(7)); asyncio takes that for
a connection in progress and hands out a socket that is connected to nothing. llama-server's
backlog is 5, so any burst of requests meets this.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.client_exceptions import UnixClientConnectorError
from aiohttp.client_proto import ResponseHandler

if TYPE_CHECKING:
    from aiohttp import ClientRequest, ClientTimeout
    from aiohttp.tracing import Trace

_FIRST_DELAY_S = 0.001
_LAST_DELAY_S = 0.032


async def connect(path: str) -> socket.socket:
    """A connected socket; the caller sets the deadline.

    :raises OSError: nobody listens there.
    """
    delay_s = _FIRST_DELAY_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(path)  # at once, one way or the other
        except BlockingIOError:
            connection.close()
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LAST_DELAY_S)
        except BaseException:
            connection.close()
            raise
        else:
            return connection


class PatientUnixConnector(aiohttp.UnixConnector):
    """aiohttp has no other place than this method to say how a connection is made."""

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> ResponseHandler:
        try:
            async with asyncio.timeout(timeout.sock_connect):
                connection = await connect(self.path)
                loop = asyncio.get_running_loop()
                _, protocol = await loop.create_unix_connection(
                    lambda: ResponseHandler(loop), sock=connection
                )
        except TimeoutError:
            raise
        except OSError as error:
            raise UnixClientConnectorError(self.path, req.connection_key, error) from error
        return protocol
