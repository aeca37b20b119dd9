"""The member's end: the only way to an rpc-server, for one node and one term.

Nothing that a caller does reaches rpc-server before it has shown its certificate, asked for the
right term, and sent a whole hello; and what rpc-server owes is read to the end whatever becomes of
the caller.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic

import structlog

from meshd.gateway.certificate import Certificate
from meshd.gateway.lasting import lasting
from meshd.gateway.listen import Address
from meshd.guard.admission import Door, refusal, stranger
from meshd.guard.allowance import Pace
from meshd.guard.commands import Rule, Triple
from meshd.guard.conversation import Conversation
from meshd.guard.front import Front
from meshd.guard.greeting import Greeting, Ping, Pong, Want, Welcome, decode, encode
from meshd.guard.hello import HELLO_REQUEST_BYTES, is_hello
from meshd.guard.link import Ended, Link
from meshd.guard.status import End, GuardStatus
from meshd.guard.tally import Tally
from meshd.guard.wire import Wire, accept, encrypt
from meshd.mesh.tls import handshake_problem, peer_node_id

# For the handshake and the first line together: half a dozen round trips.
_GREETING_S = 5.0
_FIRST_COMMAND_S = 10.0
# Between pings that come every half second.
SILENT_S = 2.5
# For rpc-server to finish what the last client asked for.
_SEAT_S = 10.0
# Callers that have not shown who they are. The one who has taken longest makes room.
_MOST_STRANGERS = 64
_AGAIN_S = 1.0
_CERTIFICATE_LOOK_S = 5.0

_log = structlog.get_logger("meshd.guard")


@dataclass(frozen=True, slots=True)
class MemberOptions:
    """:ivar front: where rpc-server listens. :ivar tls: folder with this node's certificate."""

    name: str
    front: Address
    admit: str
    term: int
    protocol: Triple
    tls: Path


class MemberEnd:
    """:ivar refused: strangers and rude probes sent away so far."""

    def __init__(
        self,
        options: MemberOptions,
        listeners: list[socket.socket],
        on_call: Callable[[Rule, float, int, int], None],
        started_s: float,
    ) -> None:
        """:param listeners: non-blocking and listening; closed by `run`."""
        self.refused = 0
        self._options = options
        self._listeners = listeners
        self._on_call = on_call
        self._started_s = started_s
        self._certificate = Certificate()
        self._door = Door(options.admit, options.term)
        self._tally = Tally(options.admit, str(options.front), Pace(0.0))
        self._greeting: dict[asyncio.Task[None], None] = {}
        self._serving: dict[asyncio.Task[None], None] = {}
        self._control: asyncio.Task[None] | None = None
        self._front = Front(options.front, options.protocol)

    def status(self) -> GuardStatus:
        problem = self._why_not
        peer = self._tally.status(
            monotonic(),
            reached=not problem,
            problem=problem,
            protocol=self._front.protocol,
        )
        return GuardStatus(
            self._options.name,
            End.MEMBER,
            self._started_s,
            self._options.term,
            (peer,),
            refused=self.refused,
        )

    async def run(self) -> None:
        """Until cancelled."""
        await self._certificate.look(str(self._options.tls))
        tasks = [
            asyncio.create_task(lasting("following the certificate", self._follow_certificate)),
            asyncio.create_task(lasting("asking rpc-server", self._front.follow)),
            *(
                asyncio.create_task(lasting("answering the door", partial(self._listen, listener)))
                for listener in self._listeners
            ),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            ending = [*tasks, *self._greeting, *self._serving]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            for listener in self._listeners:
                listener.close()

    @property
    def _why_not(self) -> str:
        """Why no connection is taken, "" when one is."""
        return "" if self._tally.link is not None else self._front.problem

    async def _follow_certificate(self) -> None:
        while True:
            await self._certificate.look(str(self._options.tls))
            await asyncio.sleep(_CERTIFICATE_LOOK_S)

    async def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                connection = await accept(listener)
            except OSError as error:
                _log.warning("cannot take a connection", error=str(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            if len(self._greeting) >= _MOST_STRANGERS:
                next(iter(self._greeting)).cancel()
            task = asyncio.create_task(self._greet(connection))
            self._greeting[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._greeting.pop(task, None)
        self._serving.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection failed", error=repr(error))

    async def _greet(self, connection: socket.socket) -> None:
        wire = Wire(connection)
        try:
            try:
                if self._certificate.server is None:
                    raise ValueError("this node has no certificate of its mesh")
                wire = encrypt(connection, self._certificate.server, None)
                async with asyncio.timeout(_GREETING_S):
                    await wire.handshake()
                    assert isinstance(wire.socket, ssl.SSLSocket)
                    problem = stranger(self._door, peer_node_id(wire.socket))
                    if problem:
                        raise ValueError(problem)
                    greeting = decode(await wire.line(), Greeting)
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                self._refuse(_why(error))
                return
            task = asyncio.current_task()
            assert task is not None
            self._greeting.pop(task, None)
            self._serving[task] = None
            await self._serve(wire, greeting)
        except asyncio.CancelledError:
            if len(self._greeting) >= _MOST_STRANGERS:
                self._refuse("too many callers")
            raise
        finally:
            wire.close()

    def _refuse(self, why: str) -> None:
        self.refused += 1
        _log.debug("caller sent away", why=why)

    async def _serve(self, wire: Wire, greeting: Greeting) -> None:
        problem = refusal(self._door, greeting)
        if not problem and greeting.want is Want.RPC:
            problem = self._why_not
        try:
            async with asyncio.timeout(_GREETING_S):
                await wire.write(encode(Welcome(problem)))
        except (OSError, TimeoutError):
            return
        if problem:
            self.refused += 1
            _log.warning("the host's connection refused", want=greeting.want, problem=problem)
        elif greeting.want is Want.CONTROL:
            await self._follow_host(wire, greeting)
        else:
            self._count(+1)
            try:
                await self._carry(wire)
            finally:
                self._count(-1)

    def _count(self, more: int) -> None:
        self._door = replace(self._door, connections=self._door.connections + more)

    async def _follow_host(self, wire: Wire, greeting: Greeting) -> None:
        """The control channel. Its end is the end of the group's connections."""
        mine = asyncio.current_task()
        former, self._control = self._control, mine
        if former is not None and former is not mine:
            former.cancel()
        if self._door.group != greeting.group and self._tally.link is not None:
            self._tally.link.cut("the host's guard began anew")
        self._door = replace(self._door, group=greeting.group, controlled=True)
        _log.info("the host's guard is connected", host=self._options.admit, group=greeting.group)
        why = "the host's guard hung up"
        try:
            while True:
                async with asyncio.timeout(SILENT_S):
                    ping = decode(await wire.line(), Ping)
                    problem = self._why_not
                    await wire.write(
                        encode(Pong(ping.number, not problem, self._front.protocol, problem))
                    )
        except TimeoutError:
            why = f"the host's guard said nothing for {SILENT_S:g} s"
        except (OSError, EOFError, ValueError):
            pass
        finally:
            if self._control is mine:
                self._control = None
                self._door = replace(self._door, controlled=False)
                link = self._tally.link
                if link is not None:
                    self._tally.silence(why)
                    link.cut(why)
                _log.info("the host's guard is gone", why=why)

    async def _carry(self, wire: Wire) -> None:
        """Between the host's guard and rpc-server, from the first hello on."""
        try:
            async with asyncio.timeout(_FIRST_COMMAND_S):
                first = await wire.exactly(HELLO_REQUEST_BYTES)
                if not is_hello(first):
                    raise ValueError("it does not begin with a hello")
            async with asyncio.timeout(_SEAT_S):
                await self._front.seat.acquire()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self._refuse(str(error) or "no hello in time, or rpc-server is busy")
            return
        try:
            await self._carry_on(wire, first + wire.rest())
        finally:
            self._front.seat.release()

    async def _carry_on(self, wire: Wire, first: bytes) -> None:
        try:
            front = await self._front.open()
        except (OSError, TimeoutError) as error:
            self._lost(f"rpc-server: {error or 'does not answer'}")
            return
        try:
            conversation = Conversation(
                self._options.protocol, self._tally.pace, self._on_call, now_s=monotonic()
            )
            link = Link(wire.socket, front.socket, conversation)
            self._tally.begin(link)
            try:
                ended = await link.run(first)
            finally:
                self._tally.end()
            wire.close()
            self._judge(ended)
            if ended.by is not End.MEMBER:
                await self._front.drain(front)
        finally:
            front.close()

    def _judge(self, ended: Ended) -> None:
        if ended.by is End.MEMBER:
            self._lost(f"rpc-server hung up{f': {ended.why}' if ended.why else ''}")
        elif ended.by is None:
            _log.warning("connection broken off", why=ended.why)
            self._tally.last_trouble = ended.why

    def _lost(self, why: str) -> None:
        self._tally.loss(why)
        self._front.lost(why)
        _log.warning("rpc-server is lost", why=why)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it said too little in time"
    return handshake_problem(error) or str(error)
