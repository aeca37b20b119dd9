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
from contextlib import suppress
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
from meshd.guard.callers import Callers
from meshd.guard.commands import Rule, Triple
from meshd.guard.conversation import Conversation
from meshd.guard.front import Front
from meshd.guard.greeting import Greeting, Ping, Pong, Want, Welcome, decode, encode
from meshd.guard.hello import HELLO_REQUEST_BYTES, is_hello
from meshd.guard.link import Ended, Link
from meshd.guard.status import End, GuardStatus
from meshd.guard.tally import Tally
from meshd.guard.wire import Wire, accept, address_of, encrypt
from meshd.mesh.tls import handshake_problem, peer_node_id

# For the handshake and the first line together: half a dozen round trips.
_GREETING_S = 5.0
_FIRST_COMMAND_S = 10.0
# Of the host's guard: its pings come every half second.
SILENT_S = 2.5
_WATCH_S = 0.1
# A look that comes so late finds pings that nobody has read yet: this process had stood still.
_LATE_S = 1.0
# For rpc-server to finish what the last client asked for.
_SEAT_S = 10.0
# At the end, for rpc-server to say what it owes.
_LAST_S = 2.0
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
    def __init__(
        self,
        options: MemberOptions,
        listeners: list[socket.socket],
        on_call: Callable[[Rule, float, int, int], None],
        started_s: float,
    ) -> None:
        """:param listeners: non-blocking and listening; closed by `run`."""
        self._options = options
        self._listeners = listeners
        self._on_call = on_call
        self._started_s = started_s
        self._certificate = Certificate()
        self._door = Door(options.admit, options.term)
        self._tally = Tally(options.admit, str(options.front), Pace(0.0))
        self._callers = Callers()
        self._serving: dict[asyncio.Task[None], None] = {}
        self._control: asyncio.Task[None] | None = None
        self._pinged_s = 0.0
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
            refused=self._callers.refused,
        )

    async def run(self) -> None:
        """Until cancelled."""
        await self._certificate.look(str(self._options.tls))
        tasks = [
            asyncio.create_task(lasting("following the certificate", self._follow_certificate)),
            asyncio.create_task(lasting("asking rpc-server", self._front.follow)),
            asyncio.create_task(lasting("watching the host's guard", self._watch)),
            *(
                asyncio.create_task(lasting("answering the door", partial(self._listen, listener)))
                for listener in self._listeners
            ),
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            await self._take_leave()
            ending = [*tasks, *self._callers.tasks(), *self._serving]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            for listener in self._listeners:
                listener.close()

    async def _take_leave(self) -> None:
        """rpc-server would die of a caller that is gone (SIGPIPE), be it this guard's question."""
        if self._tally.link is not None:
            self._tally.link.cut("this guard ends")
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_S):
                await self._front.seat.acquire()

    @property
    def _why_not(self) -> str:
        """Why no connection is taken, "" when one is."""
        return "" if self._tally.link is not None else self._front.problem

    async def _follow_certificate(self) -> None:
        while True:
            await self._certificate.look(str(self._options.tls))
            await asyncio.sleep(_CERTIFICATE_LOOK_S)

    async def _watch(self) -> None:
        """Who is dead or cut off says so with nothing; who hangs up has its connections closed."""
        while True:
            due_s = monotonic() + _WATCH_S
            await asyncio.sleep(_WATCH_S)
            now_s, link = monotonic(), self._tally.link
            if now_s - due_s >= _LATE_S:
                self._pinged_s = now_s
            if link is not None and now_s - max(self._pinged_s, link.host_heard_s) > SILENT_S:
                why = f"the host's guard said nothing for {SILENT_S:g} s"
                self._tally.silence(why)
                link.cut(why)

    async def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                connection = await accept(listener)
            except OSError as error:
                self._callers.refuse("", f"cannot take a connection: {error}")
                await asyncio.sleep(_AGAIN_S)
                continue
            address = address_of(connection)
            task = asyncio.create_task(self._greet(connection, address))
            self._callers.add(task, address)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._callers.leave(task)
        self._serving.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection failed", error=repr(error))

    async def _greet(self, connection: socket.socket, address: str) -> None:
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
                self._callers.refuse(address, _why(error))
                return
            task = asyncio.current_task()
            assert task is not None
            self._callers.leave(task)
            self._serving[task] = None
            await self._serve(wire, greeting, address)
        finally:
            wire.close()

    async def _serve(self, wire: Wire, greeting: Greeting, address: str) -> None:
        problem = refusal(self._door, greeting)
        if not problem and greeting.want is Want.RPC:
            problem = self._why_not
        try:
            async with asyncio.timeout(_GREETING_S):
                await wire.write(encode(Welcome(problem)))
        except (OSError, TimeoutError):
            return
        if problem:
            self._callers.refuse(address, f"the host's: {problem}")
        elif greeting.want is Want.CONTROL:
            await self._follow_host(wire, greeting)
        else:
            self._count(+1)
            try:
                await self._carry(wire, address)
            finally:
                self._count(-1)

    def _count(self, more: int) -> None:
        self._door = replace(self._door, connections=self._door.connections + more)

    async def _follow_host(self, wire: Wire, greeting: Greeting) -> None:
        """The control channel. Its end is not that of the group's connections: see `_watch`."""
        mine = asyncio.current_task()
        former, self._control = self._control, mine
        if former is not None and former is not mine:
            former.cancel()
        if self._door.group != greeting.group and self._tally.link is not None:
            self._tally.link.cut("the host's guard began anew")
        self._door = replace(self._door, group=greeting.group, controlled=True)
        self._pinged_s = monotonic()
        _log.info("the host's guard is connected", host=self._options.admit, group=greeting.group)
        why = "the host's guard hung up"
        try:
            while True:
                async with asyncio.timeout(SILENT_S):
                    ping = decode(await wire.line(), Ping)
                    self._pinged_s = monotonic()
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
                _log.info("the host's guard is gone", why=why)

    async def _carry(self, wire: Wire, address: str) -> None:
        """Between the host's guard and rpc-server, from the first hello on."""
        try:
            async with asyncio.timeout(_FIRST_COMMAND_S):
                first = await wire.exactly(HELLO_REQUEST_BYTES)
                if not is_hello(first):
                    raise ValueError("it does not begin with a hello")
            if self._tally.link is not None:
                # The host's guard has one at a time: for it the former is over.
                self._tally.link.cut("the host's guard opened another connection")
            async with asyncio.timeout(_SEAT_S):
                await self._front.seat.acquire()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            why = str(error) or "no hello in time, or rpc-server is busy"
            self._callers.refuse(address, why)
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
            self._front.ask_again()

    def _lost(self, why: str) -> None:
        self._tally.loss(why)
        self._front.lost(why)
        _log.warning("rpc-server is lost", why=why)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it said too little in time"
    return handshake_problem(error) or str(error)
