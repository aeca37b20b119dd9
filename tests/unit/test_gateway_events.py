"""Where events end, and whether a stream said that it was done."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.event_stream import MAX_HELD_BYTES, EventStream

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
    stream = EventStream()
    for piece in _cut(b"".join(said), cuts):
        stream.feed(piece)
    assert stream.done is (bool(said) and said[-1] == DONE)


def test_the_word_done_within_a_text_is_not_the_end() -> None:
    stream = EventStream()
    stream.feed(b'data: {"content":"data: [DONE]"}\n\n')
    assert not stream.done


def test_an_error_event_is_known() -> None:
    for error in (b'data: {"error":{}}\n\n', b"event: error\ndata: {}\n\n"):
        stream = EventStream()
        stream.feed(b"data: a\n\n" + error)
        assert stream.failed
        stream.feed(b"data: b\n\n")
        assert not stream.failed


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
