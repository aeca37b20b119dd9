"""One RPC connection as its bytes pass: calls, answers, ages. No socket, no clock, and no copy of
payloads.

A guard feeds it what it forwards. It follows the frames (`commands`), knows which calls wait for an
answer and how much work they asked for, and breaks off what is no RPC.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from meshd.guard.allowance import IDLE, Pace, Waiting, Work, learned
from meshd.guard.commands import (
    HELLO_ANSWER_BYTES,
    HELLO_BYTES,
    RULES,
    TENSOR_NB_OFFSET,
    TENSOR_NE_OFFSET,
    Command,
    Rule,
    Triple,
    triple_problem,
)

_REQUEST = struct.Struct("<BQ")
_REQUEST_BYTES = _REQUEST.size
_unpack_request = _REQUEST.unpack_from
_ANSWER = struct.Struct("<Q")
_FOUR = struct.Struct("<4I")
_SIZE_AFTER_DEVICE = struct.Struct("<4xQ")
# llama-server waits for each answer before its next call that has one.
_MOST_CALLS = 256
# Between this guard and rpc-server: two sockets' buffers a hop (tcp(7): tcp_rmem and tcp_wmem), and
# the guards' own. What was sent before was read, and rpc-server reads on when it has computed.
IN_FLIGHT_BYTES = 24_000_000
_MOST_GRAPHS = 1024


class BrokenTalkError(Exception):
    """What passed is no RPC of the expected protocol. The message is for a person."""


@dataclass(frozen=True, slots=True)
class _Call:
    rule: Rule
    since_s: float
    size_bytes: int


class Conversation:
    """:ivar protocol: what rpc-server announced, None before.

    :ivar calls: answered ones; ``call_s`` is the sum of their times.
    :ivar allocated: the client has had a buffer: it is an engine that loads or runs.
    :ivar pace: what was learned of how long work takes here.
    """

    def __init__(
        self,
        expected: Triple,
        pace: Pace,
        on_call: Callable[[Rule, float, int, int], None],
        *,
        now_s: float,
    ) -> None:
        """:param on_call: hears of every request that is done: its rule, the seconds from its last
        byte to the answer's (0 for one without an answer), and the payloads' bytes there and back.
        """
        self.protocol: Triple | None = None
        self.calls = 0
        self.call_s = 0.0
        self.allocated = False
        self.pace = pace
        self._expected = expected
        self._on_call = on_call
        self._open: deque[_Call] = deque()
        self._progress_s = now_s
        # Since the last answer: how many, and where in all that was sent the last of them ended.
        self._graphs = 0
        self._graph_ends: deque[int] = deque(maxlen=_MOST_GRAPHS)
        self._sent_bytes = 0
        self._moved_bytes = self._stored_bytes = 0
        self._buffer_bytes = 0
        self._greeted = False
        self._urgent = False
        # The request that is just passing.
        self._rule: Rule | None = None
        self._head = bytearray()
        self._left = self._size = 0
        self._kept: bytearray | None = None
        # The answer that is just passing.
        self._answering = False
        self._answer_head = bytearray()
        self._answer_left = self._answer_size = 0
        self._answer: bytearray | None = None

    def may_wait(self) -> bool:
        """Whether rpc-server can do nothing yet with what was sent since this was last asked."""
        urgent, self._urgent = self._urgent, False
        return not urgent

    def answer_may_wait(self) -> bool:
        """Whether the client can do nothing yet with what was received."""
        return self._answering or bool(self._answer_head)

    @property
    def owed(self) -> int:
        """Calls that wait for an answer."""
        return len(self._open)

    def oldest_call_s(self, now_s: float) -> float:
        """Age of the oldest call without an answer, 0 without one."""
        return now_s - self._open[0].since_s if self._open else 0.0

    def waiting(self, *, blocked: bool) -> Waiting:
        """For `allowance.lost`. :param blocked: the other end takes nothing for now."""
        if not self._open and not blocked:
            return IDLE
        return Waiting(self._progress_s, self._work)

    def taken(self, now_s: float) -> None:
        """Bytes that had been held back have moved on, or nobody could look for a while."""
        self._progress_s = now_s

    def sent(self, data: memoryview, now_s: float) -> int:
        """Towards rpc-server.

        Returns how many bytes are sure to come next, or nobody waits for before they are there.

        :raises BrokenTalkError: end the connection; nothing of `data` may pass.
        """
        self._progress_s = now_s
        at, end = 0, len(data)
        self._sent_bytes += end
        while at < end:
            rule = self._rule
            if rule is None:
                if not self._head and end - at >= _REQUEST_BYTES:
                    number, length = _unpack_request(data, at)
                    at += _REQUEST_BYTES
                else:
                    step = min(_REQUEST_BYTES - len(self._head), end - at)
                    self._head += data[at : at + step]
                    at += step
                    if len(self._head) < _REQUEST_BYTES:
                        break
                    number, length = _unpack_request(self._head)
                    self._head.clear()
                rule = self._begin(number, length)
            left, there = self._left, end - at
            step = left if left < there else there
            if self._kept is not None:
                self._kept += data[at : at + step]
            at += step
            if step < left:
                self._left = left - step
                return self._left if rule.urgent else self._left + _REQUEST_BYTES
            self._end(rule, now_s)
        return _REQUEST_BYTES - len(self._head)

    def received(self, data: memoryview, now_s: float) -> int:
        """From rpc-server; as `sent`."""
        at, end = 0, len(data)
        while at < end:
            if not self._answering:
                step = min(_ANSWER.size - len(self._answer_head), end - at)
                self._answer_head += data[at : at + step]
                at += step
                if len(self._answer_head) < _ANSWER.size:
                    break
                (length,) = _ANSWER.unpack(self._answer_head)
                self._answer_head.clear()
                self._begin_answer(length, now_s)
            step = min(self._answer_left, end - at)
            if self._answer is not None:
                self._answer += data[at : at + step]
            self._answer_left -= step
            at += step
            if not self._answer_left:
                self._end_answer(now_s)
        self._progress_s = now_s
        return self._answer_left if self._answering else _ANSWER.size - len(self._answer_head)

    @property
    def _work(self) -> Work:
        ends, read_bytes = self._graph_ends, self._sent_bytes - IN_FLIGHT_BYTES
        while len(ends) > 1 and ends[0] < read_bytes:
            ends.popleft()
        moved_bytes = self._moved_bytes // max(1, self._graphs)
        return Work(len(ends), moved_bytes, self._stored_bytes, self.pace.computed)

    def _begin(self, number: int, length: int) -> Rule:
        if number >= len(RULES):
            raise BrokenTalkError(f"command {number} is none that this guard lets pass")
        rule = RULES[number]
        if length > rule.most:
            raise BrokenTalkError(f"{rule.label} of {length} bytes, more than {rule.most}")
        if rule.command is Command.HELLO or not self._greeted:
            self._greet(rule, length)
        if rule.data:
            self._moved_bytes += length
        elif rule.read:
            self._kept = bytearray()
        self._rule, self._left, self._size = rule, length, length
        return rule

    def _greet(self, rule: Rule, length: int) -> None:
        if self._greeted:
            raise BrokenTalkError("a second hello")
        if rule.command is not Command.HELLO or length != HELLO_BYTES:
            raise BrokenTalkError("it does not begin with a hello")
        self._greeted = True

    def _end(self, rule: Rule, now_s: float) -> None:
        self._rule = None
        if rule.urgent:
            self._urgent = True
            if rule.graph:
                self._graphs += 1
                self._graph_ends.append(self._sent_bytes)
            elif self._kept is not None:
                self._read(rule.command, self._kept)
                self._kept = None
        elif rule.command is Command.BUFFER_CLEAR:
            self._stored_bytes += self._buffer_bytes
        if rule.answer is None:
            self._on_call(rule, 0.0, self._size, 0)
            return
        if len(self._open) >= _MOST_CALLS:
            raise BrokenTalkError(f"more than {_MOST_CALLS} calls without an answer")
        self._open.append(_Call(rule, now_s, self._size))

    def _read(self, command: Command, payload: bytearray) -> None:
        if command is Command.ALLOC_BUFFER:
            if len(payload) >= _SIZE_AFTER_DEVICE.size:
                (size,) = _SIZE_AFTER_DEVICE.unpack_from(payload)
                self._buffer_bytes += size
                self._stored_bytes += size
            self.allocated = True
        elif len(payload) >= TENSOR_NB_OFFSET + _FOUR.size:
            extents = _FOUR.unpack_from(payload, TENSOR_NE_OFFSET)
            strides = _FOUR.unpack_from(payload, TENSOR_NB_OFFSET)
            self._stored_bytes += extents[3] * strides[3]

    def _begin_answer(self, length: int, now_s: float) -> None:
        if not self._open:
            raise BrokenTalkError("an answer to nothing")
        rule = self._open[0].rule
        if rule.answer is None or length > rule.answer:
            raise BrokenTalkError(f"an answer of {length} bytes to {rule.label}")
        if rule.command is Command.HELLO:
            if length != HELLO_ANSWER_BYTES:
                raise BrokenTalkError(f"an answer of {length} bytes to hello")
            self._answer = bytearray()
        self.pace = learned(self.pace, self._work, now_s - self._progress_s)
        self._graphs = self._moved_bytes = self._stored_bytes = 0
        self._graph_ends.clear()
        self._answering = True
        self._answer_left = self._answer_size = length

    def _end_answer(self, now_s: float) -> None:
        call = self._open.popleft()
        self._answering = False
        if self._answer is not None:
            self.protocol = (self._answer[0], self._answer[1], self._answer[2])
            self._answer = None
            problem = triple_problem(self._expected, self.protocol)
            if problem:
                raise BrokenTalkError(problem)
        self.calls += 1
        self.call_s += now_s - call.since_s
        self._on_call(call.rule, now_s - call.since_s, call.size_bytes, self._answer_size)
