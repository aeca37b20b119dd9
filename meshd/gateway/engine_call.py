"""One request to one engine, here or behind another node's door: the answer's head, or how it
failed.
"""

from __future__ import annotations

import errno
import io
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp

# aiohttp writes bytes in one go; more than this goes out in pieces.
_LARGE_BODY_BYTES = 512 * 1024
_STALE_TRIES = 4
# The machine is gone, not only the connection: another connection would only take as long again.
_SILENT = frozenset(
    {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}
)


@dataclass(frozen=True, slots=True)
class Door:
    """Where a target's requests go.

    :ivar base: scheme and authority of the URL.
    :ivar server_name: that the other end's certificate must have, None for a Unix socket.
    """

    session: aiohttp.ClientSession
    base: str
    server_name: str | None = None

    @property
    def remote(self) -> bool:
        return self.server_name is not None


class EngineFailed(Exception):  # noqa: N818 -- an outcome that the relay expects
    """Nothing of an answer was passed on; another engine may be tried.

    :ivar kind: for the metric: refused, connect_timeout, reset, silent, loading, moved or
        no_certificate.
    :ivar lost: the request had been sent: it may be what killed the engine.
    :ivar answered: the node itself is well, only this model cannot be had there now.
    """

    def __init__(self, kind: str, *, lost: bool, answered: bool = False) -> None:
        super().__init__(kind)
        self.kind = kind
        self.lost = lost
        self.answered = answered


LOST = "X-Mesh-Lost"
"""On a node's 503: the request was with an engine that then died."""


def trace() -> aiohttp.TraceConfig:
    """For the session: notes in `trace_request_ctx` that a kept connection was used again."""

    async def reused(
        _session: aiohttp.ClientSession,
        context: SimpleNamespace,
        _params: aiohttp.TraceConnectionReuseconnParams,
    ) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(reused)
    return config


async def call(door: Door, path: str, body: bytes, head: dict[str, str]) -> aiohttp.ClientResponse:
    """Send the request and wait for the answer's head; the caller sets the deadline.

    :raises EngineFailed: the engine cannot be reached, hung up, is still loading or has moved.
    """
    for _ in range(_STALE_TRIES):
        noted = SimpleNamespace(reused=False)
        try:
            answer = await door.session.post(
                f"{door.base}{path}",
                data=body if len(body) <= _LARGE_BODY_BYTES else io.BytesIO(body),
                headers=head,
                allow_redirects=False,
                server_hostname=door.server_name,
                trace_request_ctx=noted,
            )
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL):
            raise EngineFailed("refused", lost=False) from None
        except aiohttp.ServerTimeoutError:
            raise EngineFailed("connect_timeout", lost=False) from None
        except (aiohttp.ClientError, OSError) as error:
            if silent(error):
                raise EngineFailed("silent", lost=False) from None
            if noted.reused:
                continue  # closed by the engine just when we used it again: not a failure
            raise EngineFailed("reset", lost=True) from None
        if answer.status == 503:
            lost = door.remote and LOST in answer.headers
            answer.close()
            raise EngineFailed("loading", lost=lost, answered=door.remote)
        return answer
    raise EngineFailed("reset", lost=True)


def silent(error: BaseException | None) -> bool:
    """Whether the network says that the other machine does not answer."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SILENT:
            return True
        error = error.__cause__ or error.__context__
    return False
