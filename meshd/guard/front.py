"""rpc-server as the member's end knows it: whether it can be used, and whose turn it is.

It serves one connection at a time, so all that talk to it take the seat first: the guard's own
question, and each caller, who gives it back when rpc-server has said all that it owed.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from time import monotonic

import structlog

from meshd.gateway.listen import Address
from meshd.guard.commands import Triple, major_problem, triple_problem, words
from meshd.guard.probe import probe
from meshd.guard.wire import Wire, connect

_ANSWER_S = 2.0
_DRAIN_S = 10.0
# A drain that takes longer is said to the host.
_BRIEF_S = 1.0
_AGAIN_S = 1.0
_IDLE_S = 10.0

_log = structlog.get_logger("meshd.guard")


class Front:
    """:ivar seat: held by who talks to rpc-server. :ivar protocol: as it announced it, "" before.

    :ivar address: where it listens.
    """

    def __init__(self, address: Address, expected: Triple) -> None:
        self.address = address
        self.protocol = ""
        self.seat = asyncio.Lock()
        self._expected = expected
        self._problem = major_problem(expected) or "rpc-server was not asked yet"
        self._draining_since: float | None = None
        self._look_again = asyncio.Event()

    @property
    def problem(self) -> str:
        """Why it takes no connection, "" when it does."""
        since_s = self._draining_since
        if since_s is not None and monotonic() - since_s > _BRIEF_S:
            return "rpc-server has not finished what its last client asked for"
        return self._problem

    async def follow(self) -> None:
        """Keep what is known of it fresh while nobody is connected, until cancelled."""
        if major_problem(self._expected):
            _log.error("nothing is passed", problem=self._problem)
            return
        while True:
            async with self.seat:
                await self._ask()
            self._look_again.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_S if self._problem else _IDLE_S):
                    await self._look_again.wait()

    async def open(self) -> Wire:
        """A connection, for who has the seat.

        :raises OSError, TimeoutError: there is none.
        """
        async with asyncio.timeout(_ANSWER_S):
            return await connect(self.address)

    async def drain(self, wire: Wire) -> None:
        """Let it say what it owes: it would die of a client that is gone (SIGPIPE)."""
        self._draining_since = monotonic()
        try:
            with suppress(OSError, TimeoutError):
                wire.socket.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(_DRAIN_S):
                    while await wire.read(64 * 1024):
                        pass
        finally:
            self._draining_since = None

    def lost(self, why: str) -> None:
        """It went away; it is asked again at once."""
        self._problem = why
        self.ask_again()

    def ask_again(self) -> None:
        """Soon, not only when it is due."""
        self._look_again.set()

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                found = await probe(self.address)
        except TimeoutError:
            problem = "rpc-server does not answer: it hangs, or another client holds it"
        except (OSError, EOFError, ValueError) as error:
            problem = f"rpc-server at {self.address}: {error}"
        else:
            self.protocol = words(found)
            problem = triple_problem(self._expected, found)
        if problem != self._problem:
            if problem:
                _log.warning("rpc-server cannot be used", problem=problem)
            else:
                _log.info("rpc-server answers", protocol=self.protocol)
        self._problem = problem
