"""The bus over Eclipse Zenoh: one session, QUIC with mutual TLS only.

Zenoh calls us on threads of its own. Nothing of ours runs there but handing over, through a
bounded `Inbox`; what blocks (opening, asking, sending) runs in threads with deadlines.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import zenoh
from zenoh import CongestionControl, Locality, QueryTarget

from meshd.mesh.blocking import away
from meshd.mesh.bus import ANY_CORE, MESSAGE_MAX_BYTES, BusError, Listener
from meshd.mesh.identity import is_id
from meshd.mesh.inbox import MISSED_FOR_S, Inbox
from meshd.mesh.loop_watch import LoopWatch
from meshd.mesh.zenoh_config import SessionPlan, config_text

_ASKING_AT_ONCE = 8
_CLOSE_S = 3.0


class PortTakenError(BusError):
    """A core cannot listen."""


class SessionListener(Listener, Protocol):
    """Who hears a session of Zenoh's."""

    def cut(self, core: str) -> None:
        """A client has lost its core: what it misses from now on says nothing."""

    def back(self) -> None:
        """It has one again; tokens follow."""


@dataclass(frozen=True, slots=True)
class Link:
    """A connection to another node. :ivar node: its id, from its certificate."""

    node: str
    address: str


class ZenohBus:
    """One session with the mesh; :func:`open_bus` makes it."""

    def __init__(self, session: zenoh.Session, plan: SessionPlan, prefix: str, node: str) -> None:
        self.plan = plan
        self._session = session
        self._prefix = prefix
        self._node = node
        self._threads = ThreadPoolExecutor(_ASKING_AT_ONCE, thread_name_prefix="mesh-bus")
        self._declared: list[object] = []
        self._inbox: Inbox | None = None
        self._token: zenoh.LivelinessToken | None = None
        self._token_lock = threading.Lock()
        self._closed = False
        self._watch = LoopWatch(self._take_token_back, self._show_token)
        self._loop = asyncio.get_running_loop()
        self._linked = asyncio.Event()
        self._cut = self._given_up = False
        self._nodes: frozenset[str] = frozenset()
        self._cut_timer: asyncio.TimerHandle | None = None
        self.stranger = ""
        self._declared.append(
            session.info.declare_link_events_listener(self._link_event, history=True)
        )

    @property
    def core(self) -> bool:
        return self.plan.core

    @property
    def closed(self) -> bool:
        """Whether it carries nothing more, by our doing or Zenoh's."""
        return self._closed or self._session.is_closed()

    @property
    def dropped(self) -> int:
        """Messages that came faster than they were read, and were given up."""
        return self._inbox.dropped if self._inbox else 0

    def links(self) -> tuple[Link, ...]:
        """Who we are connected to, directly."""
        if self.closed:
            return ()
        return tuple(
            Link(link.auth_identifier or "", link.dst) for link in self._session.info.links()
        )

    async def linked(self, timeout_s: float) -> bool:
        """Whether it had a link, which a new core may be without; waits for the first one."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._linked.wait(), timeout_s)
        return self._linked.is_set()

    def listen(self, ear: SessionListener) -> None:
        """Hear the mesh, and show our token. Call it once, in the event loop's thread."""
        self._ear = ear
        self._inbox = Inbox(ear, self._node, self._answer)
        session, inbox = self._session, self._inbox
        declared = self._declared
        declared.append(
            session.declare_subscriber(
                f"{self._prefix}/s/*", inbox.put_arrived, allowed_origin=Locality.REMOTE
            )
        )
        asked = [f"{self._prefix}/q/{self._node}"]
        if self.core:
            asked.append(f"{self._prefix}/core")
        declared.extend(
            session.declare_queryable(
                key, inbox.question_arrived, complete=True, allowed_origin=Locality.REMOTE
            )
            for key in asked
        )
        self._show_token()
        declared.append(
            session.liveliness().declare_subscriber(
                f"{self._prefix}/t/*/*", inbox.token_arrived, history=True
            )
        )
        self._watch.start()

    async def put(self, data: bytes) -> None:
        """:raises BusError: it is too large, or the session is closed."""
        if len(data) > MESSAGE_MAX_BYTES:
            raise BusError(f"a message of {len(data)} bytes; {MESSAGE_MAX_BYTES} are allowed")
        key = f"{self._prefix}/s/{self._node}"

        def send() -> None:
            self._session.put(
                key,
                data,
                congestion_control=CongestionControl.DROP,
                allowed_destination=Locality.REMOTE,
            )

        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, send)
        except (zenoh.ZError, RuntimeError) as error:
            raise BusError(f"cannot send to the mesh: {_short(error)}") from error

    async def ask(self, target: str, data: bytes, timeout_s: float) -> bytes | None:
        """Put a question to a node, or to the nearest core; if that one is silent, to all cores."""
        if target != ANY_CORE and not is_id(target):
            return None
        loop = asyncio.get_running_loop()
        try:
            if target != ANY_CORE:
                key = f"{self._prefix}/q/{target}"
                return await loop.run_in_executor(self._threads, self._get, key, data, timeout_s)
            key, half = f"{self._prefix}/core", timeout_s / 2
            answer = await loop.run_in_executor(self._threads, self._get, key, data, half)
            if answer is None:
                answer = await loop.run_in_executor(
                    self._threads, self._get, key, data, half, QueryTarget.ALL
                )
        except (zenoh.ZError, RuntimeError):
            return None
        return answer

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._watch.stop()
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        if self._inbox is not None:
            self._inbox.close()
        self._threads.shutdown(wait=False)

        def end() -> None:
            self._take_token_back()
            self._session.close()  # type: ignore[no-untyped-call]

        # Zenoh may hang on a peer that is gone; its lease ends what we leave behind.
        with contextlib.suppress(TimeoutError, zenoh.ZError):
            await away(end, _CLOSE_S, lambda _: None)

    def _get(
        self,
        key: str,
        data: bytes,
        timeout_s: float,
        target: QueryTarget = QueryTarget.BEST_MATCHING,
    ) -> bytes | None:
        replies = self._session.get(
            key,
            zenoh.handlers.FifoChannel(16),
            target=target,
            consolidation=zenoh.ConsolidationMode.NONE,
            payload=data,
            timeout=timeout_s,
            congestion_control=CongestionControl.DROP,
            allowed_destination=Locality.REMOTE,
        )
        for reply in replies:
            if reply.ok is not None:
                return bytes(reply.ok.payload)
        return None

    def _answer(self, query: zenoh.Query, data: bytes | None) -> None:
        def send() -> None:
            with query, contextlib.suppress(zenoh.ZError):
                if data is not None:
                    query.reply(query.key_expr, data)

        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._threads.submit(send)

    def _show_token(self) -> None:
        with self._token_lock:
            if self._token is None and not self._closed:
                self._token = self._session.liveliness().declare_token(
                    f"{self._prefix}/t/{self._node}/{self.plan.zid}"
                )

    def _take_token_back(self) -> None:
        with self._token_lock:
            token, self._token = self._token, None
            if token is not None:
                with contextlib.suppress(zenoh.ZError):
                    token.undeclare()  # type: ignore[no-untyped-call]

    def _link_event(self, event: zenoh.LinkEvent) -> None:
        if event.kind != zenoh.SampleKind.PUT or _ours(event.link):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._links_moved)
        else:
            self.stranger = event.link.dst
            threading.Thread(target=self._session.close).start()

    def _links_moved(self) -> None:
        nodes = frozenset(link.node for link in self.links())
        before, linked = self._nodes, bool(nodes)
        if linked:
            self._nodes = nodes
            self._linked.set()
        if self.core or self._closed or self._inbox is None or linked is not self._cut:
            return
        self._cut = not linked
        if self._cut_timer is not None:
            self._cut_timer.cancel()
            self._cut_timer = None
        if self._cut:
            self._inbox.cut()
            self._cut_timer = self._loop.call_later(MISSED_FOR_S, self._give_up)
            return
        if self._given_up:
            self._given_up = False
            self._ear.back()
        self._inbox.back(before - nodes)

    def _give_up(self) -> None:
        if self._cut and self._inbox is not None and not self._closed:
            self._given_up = True
            self._inbox.give_up()
            self._ear.cut(next(iter(self._nodes), ""))


async def open_bus(plan: SessionPlan, mesh: str, node: str, timeout_s: float) -> ZenohBus:
    """Open a session.

    A client has reached a core then; a core listens, and goes on trying to reach the others.

    :raises BusError: nobody answered in time, the port is taken, or a stranger answered.
    """
    session = await open_session(plan, timeout_s)
    return ZenohBus(session, plan, f"meshd/{mesh}", node)


async def open_session(plan: SessionPlan, timeout_s: float) -> zenoh.Session:
    """A bare session: nothing has been said on it but the handshake.

    :raises BusError: as `open_bus`.
    """
    config = zenoh.Config.from_json5(config_text(plan))

    def close(session: zenoh.Session) -> None:
        with contextlib.suppress(zenoh.ZError):
            session.close()  # type: ignore[no-untyped-call]

    try:
        session = await away(lambda: zenoh.open(config), timeout_s, close)
    except TimeoutError:
        raise BusError(f"nobody answered within {timeout_s:.1f} s") from None
    except zenoh.ZError as error:
        if "Address already in use" in str(error):
            raise PortTakenError("another program has the UDP port of mesh.listen") from error
        raise BusError(_short(error)) from error
    # Zenoh 1.10 trusts every public CA as well as ours; a node's id is no name that those certify.
    strange = next((link for link in session.info.links() if not _ours(link)), None)
    if strange is not None:
        await away(lambda: close(session), _CLOSE_S, lambda _: None)
        raise BusError(f"{strange.dst} is no node of this mesh")
    return session


def new_nonce() -> bytes:
    return secrets.token_bytes(3)


def _ours(link: zenoh.Link) -> bool:
    return is_id(link.auth_identifier or "")


def _short(error: BaseException) -> str:
    """Zenoh's words without its source paths."""
    text = str(error).split(" at /")[0].strip()
    if "Unable to connect" in text:
        return "nobody answered"
    return text or type(error).__name__
