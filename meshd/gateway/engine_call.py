"""One request to one engine: the answer's head, or how the engine failed."""

from __future__ import annotations

import io
from types import SimpleNamespace

import aiohttp

# aiohttp writes bytes in one go; more than this goes out in pieces.
_LARGE_BODY_BYTES = 512 * 1024
_STALE_TRIES = 4


class EngineFailed(Exception):  # noqa: N818 -- an outcome that the relay expects
    """Nothing of an answer was passed on; another engine may be tried.

    :ivar kind: for the metric: refused, connect_timeout, reset or loading.
    :ivar lost: the request had been sent: it may be what killed the engine.
    """

    def __init__(self, kind: str, *, lost: bool) -> None:
        super().__init__(kind)
        self.kind = kind
        self.lost = lost


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


async def call(
    session: aiohttp.ClientSession, path: str, body: bytes, head: dict[str, str]
) -> aiohttp.ClientResponse:
    """Send the request and wait for the answer's head; the caller sets the deadline.

    :raises EngineFailed: the engine cannot be reached, hung up, or is still loading.
    """
    for _ in range(_STALE_TRIES):
        noted = SimpleNamespace(reused=False)
        try:
            answer = await session.post(
                f"http://engine{path}",
                data=body if len(body) <= _LARGE_BODY_BYTES else io.BytesIO(body),
                headers=head,
                allow_redirects=False,
                trace_request_ctx=noted,
            )
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL):
            raise EngineFailed("refused", lost=False) from None
        except aiohttp.ServerTimeoutError:
            raise EngineFailed("connect_timeout", lost=False) from None
        except (aiohttp.ClientError, OSError):
            if noted.reused:
                continue  # closed by the engine just when we used it again: not a failure
            raise EngineFailed("reset", lost=True) from None
        if answer.status == 503:
            answer.close()
            raise EngineFailed("loading", lost=False)
        return answer
    raise EngineFailed("reset", lost=True)
