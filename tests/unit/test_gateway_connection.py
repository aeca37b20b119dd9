"""The client of engines, fed byte by byte: what comes out does not depend on how it was cut."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.engine_http.answer import Answer, AnswerBroken
from meshd.gateway.engine_http.connection import HELD_BYTES, MAX_HEAD_BYTES, Connection
from meshd.gateway.engine_http.message_head import request_head

HEAD = request_head("POST", "/v1/x", "engine", {"Accept": "*/*"}, 2)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=x\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


class Wire(asyncio.Transport):
    """The other end: takes what is written, and may stop to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reading = True
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Asked:
    """A request that was sent on a connection of its own."""

    def __init__(self, body: bytes = b"{}") -> None:
        self.released: list[Connection] = []
        self.connection = Connection(self.released.append)
        self.wire = Wire()
        self.connection.connection_made(self.wire)
        self.asking = asyncio.ensure_future(self.connection.ask(HEAD, body))

    async def answer(self) -> Answer:
        return await asyncio.wait_for(self.asking, 5)

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.wire.aborted:
                self.connection.data_received(piece)

    def hang_up(self, error: Exception | None = None) -> None:
        if error is None:
            self.connection.eof_received()
        self.connection.connection_lost(error)


async def asked(body: bytes = b"{}") -> Asked:
    request = Asked(body)
    await asyncio.sleep(0)  # it is written at once
    return request


async def body_of(answer: Answer) -> bytes:
    pieces = []
    while piece := await asyncio.wait_for(answer.piece(), 5):
        pieces.append(piece)
    return b"".join(pieces)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner() as runner:
        runner.run(work())


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def chunked(parts: list[bytes], trailer: bytes = b"") -> bytes:
    return (
        b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n%s\r\n" % trailer
    )


PARTS = st.lists(st.binary(min_size=1, max_size=50), max_size=6)
PLACES = st.lists(st.integers(0, 2000), max_size=12)


@given(PARTS, PLACES, st.sampled_from([b"", b"X-After: 1\r\n"]))
def test_a_chunked_answer_cut_anywhere_is_the_same(
    parts: list[bytes], places: list[int], trailer: bytes
) -> None:
    async def work() -> None:
        request = await asked()
        request.feed(*cut(CHUNKED + chunked(parts, trailer), places))
        answer = await request.answer()
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert "X-After" not in answer.headers
        assert await body_of(answer) == b"".join(parts)
        answer.close()
        assert request.released == [request.connection]

    run(work)


@given(st.binary(max_size=200), PLACES)
def test_an_answer_with_a_length_cut_anywhere_is_the_same(body: bytes, places: list[int]) -> None:
    async def work() -> None:
        request = await asked()
        head = b"HTTP/1.1 404 No\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: %d\r\n\r\n" % len(body)
        request.feed(*cut(head + body, places))
        answer = await request.answer()
        assert answer.status == 404
        assert answer.headers.getall("X-A") == ["1", "2"]
        assert await body_of(answer) == body

    run(work)


@given(PARTS, PLACES, st.integers(0, 2000))
def test_an_answer_that_ends_anywhere_before_its_end_is_broken(
    parts: list[bytes], places: list[int], end: int
) -> None:
    whole = CHUNKED + chunked(parts)
    came = whole[: end % len(whole)]

    async def work() -> None:
        request = await asked()
        request.feed(*cut(came, places))
        request.hang_up()
        with pytest.raises(AnswerBroken) as broken:
            await body_of(await request.answer())
        assert broken.value.begun is bool(came)
        assert not broken.value.silent
        assert request.released == []

    run(work)


@pytest.mark.parametrize("number", [110, 113])
async def test_a_machine_that_fell_silent_is_told_from_a_broken_connection(number: int) -> None:
    request = await asked()
    request.feed(CHUNKED + b"5\r\nhello\r\n")
    request.hang_up(OSError(number, "no answer"))
    answer = await request.answer()
    assert await answer.piece() == b"hello", "what came before is not lost"
    with pytest.raises(AnswerBroken) as broken:
        await answer.piece()
    assert broken.value.silent


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"],
)
async def test_without_a_length_the_connections_end_is_the_answers_end(head: bytes) -> None:
    request = await asked()
    request.feed(head, b"some", b"thing")
    answer = await request.answer()
    assert await answer.piece() == b"something"
    waiting = asyncio.ensure_future(answer.piece())
    await asyncio.sleep(0)
    assert not waiting.done()
    request.hang_up()
    assert await waiting == b""
    answer.close()
    assert request.released == []


async def test_what_precedes_the_answer_is_passed_over() -> None:
    request = await asked()
    request.feed(b"HTTP/1.1 100 Continue\r\nX-Early: 1\r\n\r\n")
    request.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
    answer = await request.answer()
    assert answer.status == 200
    assert "X-Early" not in answer.headers
    assert await body_of(answer) == b"x"
    answer.close()
    assert request.released


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n\0: c\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: other\r\nConnection: upgrade\r\n\r\nother",
    ],
)
async def test_what_is_not_http_breaks_it(nonsense: bytes) -> None:
    request = await asked()
    request.feed(nonsense)
    request.hang_up()
    with pytest.raises(AnswerBroken):
        await body_of(await request.answer())
    assert request.wire.aborted


@pytest.mark.parametrize("size", [1, 1000, 10 * MAX_HEAD_BYTES])
async def test_a_head_without_end_is_refused(size: int) -> None:
    request = await asked()
    request.feed(b"HTTP/1.1 200 OK\r\n")
    sent = 0
    line = b"X-Filler: " + b"x" * size + b"\r\n"
    while not request.wire.aborted:
        request.feed(line)
        sent += len(line)
        assert sent <= MAX_HEAD_BYTES + len(line), "and not only at its end"
    with pytest.raises(AnswerBroken):
        await request.answer()


async def test_trailers_without_end_are_refused() -> None:
    request = await asked()
    request.feed(CHUNKED + b"1\r\nx\r\n0\r\n")
    line = b"X-Filler: " + b"x" * 1000 + b"\r\n"
    for _ in range(9 + MAX_HEAD_BYTES // len(line)):
        request.feed(line)
    assert request.wire.aborted


async def test_a_slow_reader_makes_the_other_end_wait() -> None:
    request = await asked()
    request.feed(CHUNKED)
    answer = await request.answer()
    block, came = b"y" * 10_000, 0
    while request.wire.reading:
        request.feed(b"%x\r\n%s\r\n" % (len(block), block))
        came += len(block)
        assert came <= HELD_BYTES + len(block)
    assert await answer.piece() == b"y" * came
    assert request.wire.reading
    request.feed(b"0\r\n\r\n")
    assert await answer.piece() == b""


async def test_a_wait_for_a_piece_may_be_cancelled_and_nothing_gets_lost() -> None:
    request = await asked()
    request.feed(CHUNKED)
    answer = await request.answer()
    waiting = asyncio.ensure_future(answer.piece())
    await asyncio.sleep(0)
    request.feed(b"1\r\na\r\n")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    request.feed(b"1\r\nb\r\n")
    assert await answer.piece() == b"ab"


async def test_an_answer_left_unread_cuts_the_connection() -> None:
    request = await asked()
    request.feed(CHUNKED + b"1\r\na\r\n")
    answer = await request.answer()
    answer.close()
    answer.close()
    assert request.wire.aborted
    with pytest.raises(AnswerBroken):
        await answer.piece()


async def test_a_request_that_is_given_up_cuts_the_connection() -> None:
    request = await asked()
    request.asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request.asking
    assert request.wire.aborted


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\0"])
@pytest.mark.parametrize("together", [True, False])
async def test_after_data_that_nobody_asked_for_a_connection_is_not_used_again(
    extra: bytes, together: bool
) -> None:
    request = await asked()
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    request.feed(whole + extra) if together else request.feed(whole, extra)
    answer = await request.answer()
    assert await body_of(answer) == b"x"
    answer.close()
    assert request.released == []
    assert request.wire.aborted


async def test_a_large_body_waits_for_the_other_end() -> None:
    body = bytes(range(256)) * 4 * 1024
    request = Asked(body)
    request.connection.pause_writing()
    await asyncio.sleep(0)
    assert bytes(request.wire.written) == HEAD
    taken = 0
    while len(request.wire.written) < len(HEAD) + len(body):
        request.connection.resume_writing()
        request.connection.pause_writing()
        before = taken
        for _ in range(3):
            await asyncio.sleep(0)
        taken = len(request.wire.written)
        assert taken > before or taken == len(HEAD)
        request.connection.resume_writing()
        await asyncio.sleep(0)
    assert bytes(request.wire.written) == HEAD + body
    request.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    answer = await request.answer()
    assert await answer.piece() == b""
    answer.close()
    assert request.released


async def test_a_refusal_before_a_large_bodys_end_is_heard() -> None:
    request = Asked(b"z" * 1024 * 1024)
    request.connection.pause_writing()
    await asyncio.sleep(0)
    request.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    answer = await request.answer()
    assert answer.status == 413
    assert await body_of(answer) == b"no"
    assert len(request.wire.written) < 1024 * 1024
    answer.close()
    assert request.wire.aborted, "the rest of the body would be read as a request"


@pytest.mark.parametrize("value", ["a\r\nX-Forged: 1", "a\nb", "a\rb", "a\0"])
def test_a_header_cannot_forge_another(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        request_head("POST", "/", "h", {"X": value}, 0)


def test_a_requests_head_is_as_it_came() -> None:
    assert request_head("POST", "/v1/x", "h:1", {"A": "caf\udce9"}, 7) == (
        b"POST /v1/x HTTP/1.1\r\nHost: h:1\r\nContent-Length: 7\r\nA: caf\xe9\r\n\r\n"
    )
