"""One request to one engine, here or behind another node's door: the answer's head, or how it
failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshd.gateway.engine_http.answer import Answer, AnswerBroken
from meshd.gateway.engine_http.connection import Connection
from meshd.gateway.engine_http.message_head import request_head
from meshd.gateway.engine_http.pool import Pool

LOST = "X-Mesh-Lost"
"""On a node's 503: the request was with an engine that then died."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a target's requests go.

    :ivar host: for the `Host` header.
    :ivar remote: it is another node's, not an engine's own socket.
    """

    pool: Pool
    host: str
    remote: bool = False


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


def broken(error: AnswerBroken) -> EngineFailed:
    """How the engine failed whose answer broke before anything was passed on."""
    if error.silent:
        return EngineFailed("silent", lost=False)
    return EngineFailed("reset", lost=True)


async def call(door: Door, path: str, body: bytes, head: dict[str, str]) -> Answer:
    """Send the request and wait for the answer's head; the caller sets the deadline.

    :raises EngineFailed: the engine cannot be reached, hung up, is still loading or has moved.
    """
    start = request_head("POST", path, door.host, head, len(body))
    kept = door.pool.kept()
    answer = await _on_kept(kept, start, body)
    if answer is None:
        try:
            connection = await _fresh(door.pool)
        except EngineFailed as failed:
            if kept is None or door.remote or failed.kind != "refused":
                raise
            # It was there when the request came, and is not any more: it may have died of it.
            raise EngineFailed("reset", lost=True) from None
        try:
            answer = await connection.ask(start, body)
        except AnswerBroken as error:
            raise broken(error) from None
    if answer.status == 503:
        lost = door.remote and LOST in answer.headers
        answer.close()
        raise EngineFailed("loading", lost=lost, answered=door.remote)
    return answer


async def status_of(door: Door, path: str) -> int:
    """What a GET is answered with, on a connection of its own: a kept one would say nothing about
    who listens now. The caller sets the deadline.

    :raises EngineFailed: nothing answers.
    """
    connection = await _fresh(door.pool)
    try:
        answer = await connection.ask(request_head("GET", path, door.host, {}, 0))
    except AnswerBroken as error:
        raise broken(error) from None
    answer.close()
    return answer.status


async def _on_kept(connection: Connection | None, start: bytes, body: bytes) -> Answer | None:
    """None when it is to be sent anew."""
    if connection is None:
        return None
    try:
        return await connection.ask(start, body)
    except AnswerBroken as error:
        if error.silent or error.begun:
            raise broken(error) from None
        return None  # closed by the engine just when we used it again: not a failure


async def _fresh(pool: Pool) -> Connection:
    try:
        return await pool.fresh()
    except TimeoutError as error:
        # The kernel's own has a number.
        raise EngineFailed("refused" if error.errno else "connect_timeout", lost=False) from None
    except (OSError, ValueError):
        raise EngineFailed("refused", lost=False) from None
