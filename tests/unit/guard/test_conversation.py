"""The framing, on bytes that a real llama-server and rpc-server said."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest

from meshd.guard.allowance import IDLE, Pace
from meshd.guard.commands import Command, Rule
from meshd.guard.conversation import IN_FLIGHT_BYTES, BrokenTalkError, Conversation
from tests.unit.guard.recorded import connection

HELLO = struct.pack("<BQ", 14, 24) + bytes(24)
HELLO_ANSWER = struct.pack("<Q", 28) + bytes([8, 0, 0]) + bytes(25)


class Heard:
    def __init__(self, expected: tuple[int, int, int] = (8, 0, 0)) -> None:
        self.calls: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.talk = Conversation(expected, Pace(20.0), self._heard, now_s=0.0)

    def _heard(self, rule: Rule, seconds: float, sent: int, answered: int) -> None:
        self.calls[rule.label] += 1
        self.sent[rule.label] += sent
        self.answered[rule.label] += answered


def request(command: int, payload: bytes = b"") -> bytes:
    return struct.pack("<BQ", command, len(payload)) + payload


def greeted() -> Heard:
    heard = Heard()
    heard.talk.sent(memoryview(HELLO), 0.0)
    heard.talk.received(memoryview(HELLO_ANSWER), 0.0)
    return heard


@pytest.mark.parametrize("chunk", [1, 7, 4096, 0])
def test_a_recorded_load_and_two_answers_are_understood(chunk: int) -> None:
    """In pieces of any size, 0 for random ones."""
    heard, random_ = Heard(), random.Random(5)
    kinds: Counter[int] = Counter()
    moved = [0, 0]
    for up, frame in connection("engine"):
        feed = heard.talk.sent if up else heard.talk.received
        if up:
            kinds[frame[0]] += 1
        moved[up] += len(frame) - (9 if up else 8)
        # Long payloads byte by byte would show nothing more.
        size = max(chunk or random_.randint(1, 3000), len(frame) // 4000)
        for at in range(0, len(frame), size):
            feed(memoryview(frame)[at : at + size], 1.0)
    assert heard.talk.owed == 0
    assert heard.talk.protocol == (8, 0, 0)
    assert heard.talk.allocated
    assert heard.calls == {Command(kind).name.lower(): count for kind, count in kinds.items()}
    assert [sum(heard.answered.values()), sum(heard.sent.values())] == moved
    assert heard.calls["get_tensor"] == 807


@pytest.mark.parametrize("name", ["count", "alignment"])
def test_short_connections_are_no_engines(name: str) -> None:
    heard = Heard()
    for up, frame in connection(name):
        (heard.talk.sent if up else heard.talk.received)(memoryview(frame), 1.0)
    assert not heard.talk.allocated
    assert heard.talk.calls == heard.calls.total()


def test_ages_and_times_of_calls() -> None:
    heard = greeted()
    heard.talk.sent(memoryview(request(15)), 10.0)
    assert heard.talk.oldest_call_s(12.5) == 2.5
    answer = struct.pack("<QI", 4, 1)
    heard.talk.received(memoryview(answer[:9]), 13.0)
    assert heard.talk.oldest_call_s(14.0) == 4.0
    assert heard.talk.waiting(blocked=False).since_s == 13.0
    heard.talk.received(memoryview(answer[9:]), 15.0)
    assert (heard.talk.calls, heard.talk.call_s, heard.talk.owed) == (2, 5.0, 0)
    assert heard.talk.waiting(blocked=False) == IDLE
    assert heard.talk.waiting(blocked=True).since_s == 15.0


def test_work_is_what_was_sent_since_the_last_answer() -> None:
    heard = greeted()
    heard.talk.sent(memoryview(request(6, bytes(1000))), 1.0)
    heard.talk.sent(memoryview(request(16, bytes(12))), 1.0)
    heard.talk.sent(memoryview(request(8, bytes(312))), 1.0)
    work = heard.talk.waiting(blocked=False).work
    assert (work.graphs, work.moved_bytes, work.computed) == (1, 1000, False)
    heard.talk.received(memoryview(struct.pack("<Q", 4) + bytes(4)), 3.0)
    heard.talk.sent(memoryview(request(8, bytes(312))), 3.0)
    work = heard.talk.waiting(blocked=False).work
    assert (work.graphs, work.moved_bytes, work.computed) == (0, 0, True)
    assert heard.talk.pace.longest_s[(1000).bit_length()] == 2.0


def test_computations_before_what_the_buffers_hold_are_done() -> None:
    """A long prompt has one answer, at its end: it must not wait for all of its micro-batches."""
    talk = greeted().talk
    inputs = memoryview(request(6, bytes(8_000_000)))
    for _ in range(50):
        talk.sent(inputs, 1.0)
        talk.sent(memoryview(request(16, bytes(12))), 1.0)
    work = talk.waiting(blocked=True).work
    assert (work.graphs, work.moved_bytes) == (IN_FLIGHT_BYTES // 8_000_000, 8_000_000)
    for _ in range(5):
        talk.sent(inputs, 1.0)
    assert talk.waiting(blocked=True).work.graphs == 1


def test_memory_that_the_server_has_to_get_or_fill_counts() -> None:
    heard = greeted()
    heard.talk.sent(memoryview(request(0, struct.pack("<IQ", 0, 5_000_000_000))), 1.0)
    assert heard.talk.waiting(blocked=False).work.stored_bytes == 5_000_000_000
    heard.talk.received(memoryview(struct.pack("<QQQ", 16, 1, 5_000_000_000)), 1.0)
    tensor = bytearray(312)
    struct.pack_into("<4I", tensor, 20, 4096, 4096, 1, 1)
    struct.pack_into("<4I", tensor, 36, 2, 8192, 4096 * 8192, 4096 * 8192)
    heard.talk.sent(memoryview(request(7, bytes(tensor))), 1.0)
    assert heard.talk.waiting(blocked=False).work.stored_bytes == 4096 * 8192


def test_nobody_waits_for_what_has_no_answer_but_for_computations() -> None:
    talk = greeted().talk
    assert not talk.may_wait()
    talk.sent(memoryview(request(6, bytes(100))), 1.0)
    assert talk.may_wait()
    talk.sent(memoryview(request(16, bytes(12))), 1.0)
    assert not talk.may_wait()
    talk.sent(memoryview(request(8, bytes(312))[:100]), 1.0)
    assert talk.may_wait()
    talk.sent(memoryview(request(8, bytes(312))[100:]), 1.0)
    assert not talk.may_wait()
    talk.received(memoryview(struct.pack("<Q", 4)), 1.0)
    assert talk.answer_may_wait()
    talk.received(memoryview(bytes(4)), 1.0)
    assert not talk.answer_may_wait()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "none that this guard lets pass"),
        (request(15), "does not begin with a hello"),
        (struct.pack("<BQ", 14, 25), "hello of 25 bytes"),
        (HELLO + HELLO, "a second hello"),
        (HELLO + request(20, bytes(80)), "command 20 is none"),
        (HELLO + struct.pack("<BQ", 6, 1 << 62), "set_tensor of"),
        (HELLO + request(15) * 300, "more than 256 calls"),
    ],
)
def test_what_is_no_rpc_is_broken_off(said: bytes, words: str) -> None:
    with pytest.raises(BrokenTalkError, match=words):
        Heard().talk.sent(memoryview(said), 1.0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HELLO_ANSWER + bytes(8), "an answer to nothing"),
        (struct.pack("<Q", 27), "an answer of 27 bytes to hello"),
        (struct.pack("<Q", 28) + bytes([8, 0, 1]) + bytes(25), "upgrade the engine .* on the host"),
        (struct.pack("<Q", 28) + bytes([7, 9, 0]) + bytes(25), "upgrade .* on the member"),
    ],
)
def test_answers_that_do_not_fit_are_broken_off(answer: bytes, words: str) -> None:
    heard = Heard()
    heard.talk.sent(memoryview(HELLO), 1.0)
    with pytest.raises(BrokenTalkError, match=words):
        heard.talk.received(memoryview(answer), 1.0)
