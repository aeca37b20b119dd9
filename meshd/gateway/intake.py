"""Takes in request bodies: bounded one by one, and all together."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from meshd.gateway.openai_error import BUSY_RETRY_S, ApiError, unavailable

# On the whole a body must come this fast, which a modem of 56 kbit/s can: else a client that sends
# a byte now and then holds its connection, and what it sent, for hours.
LEAST_BYTES_PER_S = 4096
# So many of the largest bodies may be in memory at once.
_LARGEST_AT_ONCE = 8


class Refuse(Exception):  # noqa: N818 -- an answer, not a fault
    """Ends a request with an error answer.

    :ivar lost: an engine died with the request, which whoever sent it on should know.
    """

    def __init__(self, error: ApiError, *, lost: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.lost = lost


class Intake:
    """:ivar held_bytes: of all bodies that were taken in and not yet given back."""

    def __init__(self, piece_s: float) -> None:
        """:param piece_s: how long a client may pause within a body, in seconds."""
        self.held_bytes = 0
        self._piece_s = piece_s

    async def read(self, request: web.Request, limit_bytes: int) -> bytes:
        """The whole body; `give_back` its length when it was sent on.

        It may take `piece_s` and as long as its size takes at `LEAST_BYTES_PER_S`.

        :raises Refuse: it is too large, too slow, broken, or there is no room now.
        """
        if (request.content_length or 0) > limit_bytes:
            raise Refuse(_too_large(limit_bytes))
        content = request.content
        pieces: list[bytes] = []
        size_bytes = 0
        try:
            if content.is_eof() and self.held_bytes <= limit_bytes:
                # All of it has come with the head, as small ones do: nothing to wait for.
                body = content.read_nowait()
                if len(body) > limit_bytes:
                    raise Refuse(_too_large(limit_bytes))
                self.held_bytes += len(body)
                return body
            async with asyncio.timeout(self._piece_s) as deadline:
                loop = asyncio.get_running_loop()
                latest_s = loop.time() + self._piece_s
                while piece := await content.readany():
                    size_bytes += len(piece)
                    deadline.reschedule(
                        min(
                            loop.time() + self._piece_s,
                            latest_s + size_bytes / LEAST_BYTES_PER_S,
                        )
                    )
                    self.held_bytes += len(piece)
                    pieces.append(piece)
                    if size_bytes > limit_bytes:
                        raise Refuse(_too_large(limit_bytes))
                    if self.held_bytes > _LARGEST_AT_ONCE * limit_bytes:
                        raise Refuse(
                            unavailable(
                                "The gateway holds all the request bodies that it can.",
                                "gateway_overloaded",
                                BUSY_RETRY_S,
                            )
                        )
            return b"".join(pieces)
        except BaseException as error:
            self.held_bytes -= size_bytes
            if isinstance(error, TimeoutError):
                raise Refuse(
                    ApiError(408, "The request body did not arrive in time.", code="timeout")
                ) from None
            if isinstance(error, (aiohttp.ClientError, web.RequestPayloadError, ValueError)):
                raise Refuse(
                    ApiError(400, "The request body is not valid HTTP.", code="invalid_body")
                ) from None
            raise

    def give_back(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than {limit_bytes} bytes.",
        code="request_too_large",
    )
