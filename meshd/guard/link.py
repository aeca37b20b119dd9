"""One RPC connection through a guard: two sockets, the flows between them, and why it ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from socket import socket

from meshd.guard.allowance import IDLE, Waiting
from meshd.guard.conversation import Conversation
from meshd.guard.splice import Flow
from meshd.guard.status import End


@dataclass(frozen=True, slots=True)
class Ended:
    """:ivar by: the side whose socket ended; None when the guard broke it off.

    :ivar why: "" for a plain end.
    """

    by: End | None
    why: str = ""


class Link:
    """:ivar conversation: what passes."""

    def __init__(self, host: socket, member: socket, conversation: Conversation) -> None:
        """:param host: towards llama-server. :param member: towards rpc-server."""
        self.conversation = conversation
        self._host, self._member = host, member
        self._ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._up = Flow(
            host,
            member,
            conversation.sent,
            conversation.may_wait,
            self._flow_ended,
            conversation.taken,
        )
        self._down = Flow(
            member,
            host,
            conversation.received,
            conversation.answer_may_wait,
            self._flow_ended,
            conversation.taken,
        )

    @property
    def bytes_up(self) -> int:
        return self._up.moved_bytes

    @property
    def bytes_down(self) -> int:
        return self._down.moved_bytes

    @property
    def host_heard_s(self) -> float:
        return self._up.heard_s

    @property
    def member_heard_s(self) -> float:
        return self._down.heard_s

    def waiting(self) -> Waiting:
        """For `allowance.lost`: for nobody, while the host's side does not take what there is."""
        if self._down.blocked:
            return IDLE
        return self.conversation.waiting(blocked=self._up.blocked)

    async def run(self, first: bytes) -> Ended:
        """Until one side ends, or `cut`. The sockets stay the caller's, who closes them.

        :param first: what the host's side said already.
        """
        try:
            self._down.start()
            self._up.start(first)
            return await self._ended
        finally:
            self._up.stop()
            self._down.stop()

    def cut(self, why: str) -> None:
        """End it from here."""
        self._end(Ended(None, why))

    def _flow_ended(self, whose: socket | None, why: str) -> None:
        side = {self._host: End.HOST, self._member: End.MEMBER}.get(whose) if whose else None
        self._end(Ended(side, why))

    def _end(self, ended: Ended) -> None:
        self._up.stop()
        self._down.stop()
        if not self._ended.done():
            self._ended.set_result(ended)
