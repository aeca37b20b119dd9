"""Where events end, and whether a stream said that it was done."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.event_stream import MAX_HELD_BYTES, EventStream
from meshd.gateway.protocols import PROTOCOLS

DONE = b"data: [DONE]\n\n"
events = st.sampled_from(
    [b"data: a\n\n", b": ping\n\n", b"data: b\r\n\r\n", b"event: x\ndata: c\n\n", b"\n\n", DONE]
)


def _cut(whole: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(events, max_size=8), st.binary(max_size=12), st.lists(st.integers(0, 400)))
def test_however_it_is_cut_the_bytes_are_the_same_and_end_at_an_event(
    parts: list[bytes], tail: bytes, cuts: list[int]
) -> None:
    whole = b"".join(parts) + tail
    stream = EventStream()
    out = b""
    for piece in _cut(whole, cuts):
        ready = stream.feed(piece)
        assert not ready or ready.endswith((b"\n\n", b"\r\n\r\n"))
        out += ready
    assert out + stream.rest() == whole
    # Nothing that is complete is ever held.
    assert b"\n\n" not in stream.rest()
    assert b"\r\n\r\n" not in stream.rest()


@given(st.lists(events, min_size=1, max_size=8), st.lists(st.integers(0, 400)))
def test_done_is_known_however_it_is_cut(parts: list[bytes], cuts: list[int]) -> None:
    said = [part for part in parts if part != b"\n\n"]
    telling = [part for part in said if not part.startswith(b":")]
    stream = EventStream()
    for piece in _cut(b"".join(said), cuts):
        stream.feed(piece)
    assert stream.done is (bool(telling) and telling[-1] == DONE)


def test_the_word_done_within_a_text_is_not_the_end() -> None:
    stream = EventStream()
    stream.feed(b'data: {"content":"data: [DONE]"}\n\n')
    assert not stream.done


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("/v1/chat/completions", b"data: [DONE]\n\n"),
        ("/v1/messages", b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        ("/v1/responses", b'event: response.completed\ndata: {"response":{}}\n\n'),
        ("/v1/responses", b'event: response.incomplete\ndata: {"response":{}}\n\n'),
        ("/v1/responses", b'event: response.failed\ndata: {"response":{"error":{}}}\n\n'),
    ],
)
def test_each_protocol_has_its_own_end(path: str, end: bytes) -> None:
    for other, protocol in PROTOCOLS.items():
        stream = EventStream(protocol)
        assert stream.feed(b"data: a\n\n" + end) == b"data: a\n\n" + end
        same = protocol.dialect is PROTOCOLS[path].dialect
        assert stream.done is (same or (other == "/v1/responses" and end == DONE)), other
        assert not stream.failed
    # An end that is only short of its empty line is one.
    stream = EventStream(PROTOCOLS[path])
    stream.feed(b"data: a\n\n" + end[:-1])
    assert not stream.done
    assert stream.complete


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{}}\n\n',
        b"event: error\ndata: {}\n\n",
        b'error: {"code":500,"message":"m"}\n\n',
        b'event: error\ndata: {"code":500,"message":"m","type":"server_error"}\n\n',
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"m"}}\n\n',
    ],
)
@given(cuts=st.lists(st.integers(0, 400)))
def test_an_engines_error_event_gets_the_protocols_shape(event: bytes, cuts: list[int]) -> None:
    for protocol in PROTOCOLS.values():
        stream, out = EventStream(protocol), b""
        for piece in _cut(b": hi\n\ndata: a\n\n" + event + b"data: b\n\n" + DONE, cuts):
            out += stream.feed(piece)
        assert stream.error is not None
        assert out == b": hi\n\ndata: a\n\n" + protocol.error_event(stream.error)
        assert stream.rest() == b""
        assert not stream.done


def test_the_word_error_within_a_text_is_none() -> None:
    for event in (
        b'data: {"choices":[{"delta":{"content":"event: error"}}],"error":null}\n\n',
        b'data: {"error":null,"choices":[]}\n\n',
        b'data: {"error\n\n',
    ):
        stream = EventStream()
        assert stream.feed(event) == event
        assert not stream.failed


def test_an_end_that_is_overlong_is_known() -> None:
    stream = EventStream(PROTOCOLS["/v1/responses"])
    whole = b'event: response.completed\ndata: {"response":"' + b"x" * (3 << 20) + b'"}\n\n'
    out = b"".join(stream.feed(whole[at : at + 65536]) for at in range(0, len(whole), 65536))
    assert out == whole
    assert stream.done


def test_an_overlong_event_is_passed_on_in_pieces() -> None:
    stream = EventStream()
    piece = b"x" * 65536
    out = b""
    for _ in range(40):
        out += stream.feed(piece)
        assert len(stream.rest()) <= MAX_HELD_BYTES
    assert len(out) > MAX_HELD_BYTES
    assert not stream.whole
    out += stream.feed(b"\n\n")
    assert stream.whole
    assert out == piece * 40 + b"\n\n"
