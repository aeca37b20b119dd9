"""From the host to one member: the local port, the control channel, and the connection between."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import structlog

from meshd.errors import UserError
from meshd.gateway.certificate import Certificate
from meshd.gateway.lasting import lasting
from meshd.gateway.listen import Address
from meshd.guard.allowance import Pace, lost
from meshd.guard.commands import Rule, Triple, major_problem, parse_triple, triple_problem
from meshd.guard.conversation import Conversation
from meshd.guard.greeting import Greeting, Ping, Pong, Want, Welcome, decode, encode
from meshd.guard.hello import HELLO_REQUEST_BYTES, is_hello
from meshd.guard.link import Ended, Link
from meshd.guard.status import End, PeerStatus
from meshd.guard.tally import Tally
from meshd.guard.wire import Wire, accept, connect, encrypt
from meshd.mesh.tls import handshake_problem, peer_node_id, server_name

_CONNECT_S = 2.0
_PING_S = 0.5
# Without a pong. With a ping's pause and the watch's own: noticed within 3 s.
SILENT_S = 2.4
_AGAIN_S = (0.2, 0.4, 0.8, 1.5)
# llama-server says hello at once.
_FIRST_COMMAND_S = 5.0
_MOST_WAITING = 8
# For the connection before it to end.
_SEAT_S = 10.0
# Who has the seat, has no buffers and says nothing, gives it to one who waits.
_DAWDLE_S = 2.0
_SMOOTHING = 0.2

_log = structlog.get_logger("meshd.guard")


@dataclass(frozen=True, slots=True)
class WayOptions:
    """:ivar local: on loopback. :ivar door: the member's."""

    local: Address
    node: str
    door: Address


class UnreachedError(Exception):
    """Why the member's guard is not reached, for a person."""


class Way:
    """:ivar refused: local connections sent away so far."""

    def __init__(
        self,
        options: WayOptions,
        split: str,
        term: int,
        protocol: Triple,
        ubatch_s: float,
        group: str,
        certificate: Certificate,
        mesh: Callable[[], str],
        on_call: Callable[[Rule, float, int, int], None],
    ) -> None:
        """:param mesh: the mesh's id, "" before it is known."""
        self.refused = 0
        self._options = options
        self._split, self._term, self._group = split, term, group
        self._protocol = protocol
        self._certificate, self._mesh = certificate, mesh
        self._on_call = on_call
        self._tally = Tally(options.node, str(options.local), Pace(ubatch_s))
        self._problem = major_problem(protocol) or "the member's guard was not reached yet"
        self._pong: Pong | None = None
        self._rtt_ms = 0.0
        self._heard_s: float | None = None
        self._seat = asyncio.Lock()
        self._waiting: dict[asyncio.Task[None], None] = {}
        self._dawdling_since: float | None = None

    @property
    def reached(self) -> bool:
        return not self._problem

    def status(self) -> PeerStatus:
        return self._tally.status(
            monotonic(),
            reached=self.reached,
            problem=self._problem,
            protocol=self._pong.protocol if self._pong else "",
            rtt_ms=self._rtt_ms,
        )

    def tasks(self, listener: socket.socket) -> list[asyncio.Task[None]]:
        """What has to run, until cancelled."""
        return [
            asyncio.create_task(lasting("holding the control channel", self._hold)),
            asyncio.create_task(lasting("taking connections", lambda: self._listen(listener))),
        ]

    async def close(self) -> None:
        for task in list(self._waiting):
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)

    def watch(self, now_s: float) -> None:
        """Look whether something fell silent; called ten times a second."""
        link = self._tally.link
        heard_s = self._heard_s
        if heard_s is not None and link is not None:
            # Who answers calls is there, whatever has become of the control channel.
            heard_s = max(heard_s, link.member_heard_s)
        if heard_s is not None and now_s - heard_s > SILENT_S:
            self._heard_s = None
            why = f"the member's guard said nothing for {SILENT_S:g} s"
            self._away(why)
            if link is not None:
                self._give_up(link, why)
        elif link is not None:
            talk = link.conversation
            why = lost(link.waiting(), talk.pace, now_s)
            if why:
                self._give_up(link, f"rpc-server: {why}")
            else:
                self._hurry(link, now_s)

    def overslept(self, now_s: float) -> None:
        """After this process stood still: what was said meanwhile is still to be read."""
        if self._heard_s is not None:
            self._heard_s = now_s
        if self._tally.link is not None:
            self._tally.link.conversation.taken(now_s)

    def _hurry(self, link: Link, now_s: float) -> None:
        """A client that asks for nothing must not keep others out."""
        talk = link.conversation
        others = len(self._waiting) > 1
        if not others or talk.allocated or talk.owed:
            self._dawdling_since = None
        elif self._dawdling_since is None:
            self._dawdling_since = now_s
        elif now_s - self._dawdling_since > _DAWDLE_S:
            self._dawdling_since = None
            self.refused += 1
            link.cut("it asked for nothing while others waited")

    def _give_up(self, link: Link, why: str) -> None:
        self._tally.silence(why)
        _log.error("silence, llama-server's connection is closed", member=self._options.node,
                   why=why)  # fmt: skip
        link.cut(why)

    def _away(self, why: str) -> None:
        if why != self._problem:
            _log.warning("member not reached", member=self._options.node, why=why)
        self._problem, self._pong = why, None

    # The control channel

    async def _hold(self) -> None:
        if major_problem(self._protocol):
            return
        tries = 0
        while True:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    wire = await self._greet(Want.CONTROL)
            except (UnreachedError, TimeoutError) as error:
                self._unreached(str(error) or "the member's guard does not answer")
            else:
                tries = 0
                try:
                    await self._ping(wire)
                finally:
                    wire.close()
            await asyncio.sleep(_AGAIN_S[min(tries, len(_AGAIN_S) - 1)])
            tries += 1

    def _unreached(self, why: str) -> None:
        """Not before the silence is long enough: a channel that broke may be back at once."""
        if self._heard_s is None:
            self._away(why)

    async def _ping(self, wire: Wire) -> None:
        """Until the channel breaks, or falls silent."""
        number = 0
        with suppress(OSError, EOFError, ValueError, TimeoutError):
            while True:
                number += 1
                sent_s = monotonic()
                async with asyncio.timeout(SILENT_S):
                    await wire.write(encode(Ping(number)))
                    pong = decode(await wire.line(), Pong)
                    if pong.number != number:
                        raise ValueError("the wrong pong")
                self._hear(pong, monotonic() - sent_s)
                await asyncio.sleep(_PING_S)

    def _hear(self, pong: Pong, seconds: float) -> None:
        self._heard_s = monotonic()
        known = self._rtt_ms or seconds * 1000
        self._rtt_ms = known + (seconds * 1000 - known) * _SMOOTHING
        problem = pong.problem
        if pong.protocol:
            try:
                found = parse_triple(pong.protocol)
            except UserError as error:
                problem = str(error)
            else:
                problem = triple_problem(self._protocol, found) or problem
        elif pong.answers:
            problem = "the member's guard names no protocol"
        if problem:
            self._away(problem)
        elif self._problem:
            _log.info("member reached", member=self._options.node, protocol=pong.protocol)
            self._problem = ""
        self._pong = pong

    async def _greet(self, want: Want) -> Wire:
        """A connection that the member's guard has welcomed. To be bounded by the caller.

        :raises UnreachedError: it was not.
        """
        context, mesh = self._certificate.client, self._mesh()
        if context is None or not mesh:
            raise UnreachedError("this node has no certificate of its mesh")
        node = self._options.node
        wire: Wire | None = None
        try:
            wire = await connect(self._options.door)
            wire = encrypt(wire.socket, context, server_name(node, mesh))
            await wire.handshake()
            assert isinstance(wire.socket, ssl.SSLSocket)
            if peer_node_id(wire.socket) != node:
                raise ValueError("another node answers at this address")
            await wire.write(encode(Greeting(want, self._term, self._group, self._split)))
            welcome = decode(await wire.line(), Welcome)
            if welcome.problem:
                raise ValueError(welcome.problem)
        except (OSError, EOFError, ValueError) as error:
            if wire is not None:
                wire.close()
            why = handshake_problem(error) or str(error)
            raise UnreachedError(f"the member's guard: {why}") from error
        except BaseException:
            if wire is not None:
                wire.close()
            raise
        return wire

    # llama-server's connections

    async def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                wire = Wire(await accept(listener))
            except OSError as error:
                _log.warning("cannot take a connection", error=str(error))
                await asyncio.sleep(_AGAIN_S[-1])
                continue
            if not self.reached or len(self._waiting) >= _MOST_WAITING:
                self.refused += 1
                wire.reset()
                continue
            task = asyncio.create_task(self._serve(wire))
            self._waiting[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._waiting.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection failed", error=repr(error))

    async def _serve(self, local: Wire) -> None:
        try:
            try:
                async with asyncio.timeout(_FIRST_COMMAND_S):
                    first = await local.exactly(HELLO_REQUEST_BYTES)
                    if not is_hello(first):
                        raise ValueError("it does not begin with a hello")
                async with asyncio.timeout(_SEAT_S):
                    await self._seat.acquire()
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                self.refused += 1
                _log.debug("local connection sent away", why=str(error) or "too late")
                return
            try:
                await self._carry(local, first + local.rest())
            finally:
                self._seat.release()
        finally:
            local.reset()

    async def _carry(self, local: Wire, first: bytes) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                remote = await self._greet(Want.RPC)
        except (UnreachedError, TimeoutError) as error:
            self._tally.last_trouble = str(error) or "the member's guard does not answer"
            _log.warning("no way to the member", why=self._tally.last_trouble)
            return
        try:
            now_s = monotonic()
            talk = Conversation(self._protocol, self._tally.pace, self._on_call, now_s=now_s)
            link = Link(local.socket, remote.socket, talk)
            self._tally.begin(link)
            try:
                ended = await link.run(first)
            finally:
                self._tally.end()
            self._judge(ended)
        finally:
            remote.close()

    def _judge(self, ended: Ended) -> None:
        if ended.by is End.MEMBER:
            why = f"the member hung up{f': {ended.why}' if ended.why else ''}"
            self._tally.loss(why)
            _log.error("lost, llama-server's connection is closed", member=self._options.node,
                       why=why)  # fmt: skip
        elif ended.by is None and ended.why:
            self._tally.last_trouble = ended.why
            _log.warning("connection broken off", member=self._options.node, why=ended.why)
