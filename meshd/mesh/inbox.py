"""From Zenoh's threads to the event loop: bounded, in order, one wake-up for many messages."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

import zenoh

from meshd.mesh.bus import MESSAGE_MAX_BYTES, Listener
from meshd.mesh.identity import is_id

_PUTS = 512
_QUESTIONS = 128
_TOKENS = 8192
# A node that moves from one core to another is missed for a moment, and nobody need know.
MISSED_FOR_S = 0.25
RETURN_WITHIN_S = 1.0


class Inbox:
    """:param answer: sends what the listener said to a question, or lets it go unanswered."""

    def __init__(
        self,
        listener: Listener,
        me: str,
        answer: Callable[[zenoh.Query, bytes | None], None],
    ) -> None:
        self._listener = listener
        self._me = me
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._woken = False
        self._closed = self._cut = False
        self._puts: deque[bytes] = deque()
        self._questions: deque[tuple[zenoh.Query, bytes]] = deque()
        self._sessions: dict[str, set[str]] = {}
        self._tokens = 0
        self._moved: set[str] = set()
        self._said: set[str] = set()
        self._before: set[str] = set()
        self._missing: dict[str, asyncio.TimerHandle] = {}
        self.dropped = 0

    def put_arrived(self, sample: zenoh.Sample) -> None:
        """In a thread of Zenoh's. When they come too fast the oldest go: anti-entropy heals."""
        if len(sample.payload) > MESSAGE_MAX_BYTES:
            return
        data = bytes(sample.payload)
        with self._lock:
            if len(self._puts) >= _PUTS:
                self._puts.popleft()
                self.dropped += 1
            self._puts.append(data)
            self._wake()

    def question_arrived(self, query: zenoh.Query) -> None:
        """In a thread of Zenoh's."""
        payload = query.payload
        data = bytes(payload) if payload is not None else b""
        with self._lock:
            if len(self._questions) < _QUESTIONS and not self._closed:
                self._questions.append((query, data))
                self._wake()
                return
            self.dropped += 1
        query.drop()  # type: ignore[no-untyped-call]

    def token_arrived(self, sample: zenoh.Sample) -> None:
        """In a thread of Zenoh's. A node may have several sessions for a moment."""
        node, _, session = str(sample.key_expr).split("/t/", 1)[-1].partition("/")
        if node == self._me or not is_id(node):
            return
        with self._lock:
            sessions = self._sessions.setdefault(node, set())
            if sample.kind == zenoh.SampleKind.PUT:
                if session not in sessions and self._tokens < _TOKENS:
                    sessions.add(session)
                    self._tokens += 1
            elif session in sessions:
                sessions.discard(session)
                self._tokens -= 1
            if not sessions:
                del self._sessions[node]
            self._moved.add(node)
            self._wake()

    def cut(self) -> None:
        """The session lost its only link, and Zenoh takes back every token with it: believe none
        of that. Call it in the loop's thread, as `back`.
        """
        self._cut = True

    def give_up(self) -> None:
        """The link has not come back soon: say nothing more of anybody."""
        for timer in self._missing.values():
            timer.cancel()
        self._missing.clear()
        self._before, self._said = self._said, set()

    def back(self, lost: frozenset[str]) -> None:
        """There is a link again, and in a moment the tokens that are still there.

        :param lost: who was at the other end of the link that broke, and is at none now.
        """
        self._cut = False
        with self._lock:
            up = set(self._sessions)
        for node in up:
            self._here(node)
        self._said |= self._before
        self._before = set()
        for node in self._said - up:
            self._miss(node, 0.0 if node in lost else RETURN_WITHIN_S)

    def close(self) -> None:
        """Nothing reaches the listener after this. Call it in the loop's thread."""
        with self._lock:
            self._closed = True
            left, self._questions = self._questions, deque()
            self._puts.clear()
        for query, _ in left:
            query.drop()  # type: ignore[no-untyped-call]
        for timer in self._missing.values():
            timer.cancel()

    def _wake(self) -> None:
        if self._woken or self._closed or self._loop.is_closed():
            return
        self._woken = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        with self._lock:
            self._woken = False
            if self._closed:
                return
            puts, self._puts = self._puts, deque()
            questions, self._questions = self._questions, deque()
            moved, self._moved = self._moved, set()
            up = moved & self._sessions.keys()
        for node in moved:
            if node in up:
                self._here(node)
            elif node in self._said and not self._cut:
                self._miss(node, MISSED_FOR_S)
        for data in puts:
            self._listener.heard(data)
        for query, data in questions:
            self._answer(query, self._listener.asked(data))

    def _here(self, node: str) -> None:
        timer = self._missing.pop(node, None)
        if timer is not None:
            timer.cancel()
        if node not in self._said:
            self._said.add(node)
            self._listener.token(node, up=True)

    def _miss(self, node: str, after_s: float) -> None:
        if node not in self._missing:
            self._missing[node] = self._loop.call_later(after_s, self._gone, node)

    def _gone(self, node: str) -> None:
        self._missing.pop(node, None)
        if self._cut:
            return
        self._said.discard(node)
        self._listener.token(node, up=False)
