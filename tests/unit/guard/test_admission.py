from __future__ import annotations

import pytest

from meshd.errors import UserError
from meshd.guard.admission import MOST_CONNECTIONS, Door, refusal, stranger
from meshd.guard.commands import major_problem, parse_triple, triple_problem
from meshd.guard.greeting import LINE_BYTES, Greeting, Pong, Want, decode, encode
from meshd.guard.hello import HELLO_REQUEST, is_hello

DOOR = Door("host", term=3)
CONTROL = Greeting(Want.CONTROL, 3, "a")
RPC = Greeting(Want.RPC, 3, "a")


def test_only_the_named_node_may_speak() -> None:
    assert stranger(DOOR, "host") == ""
    assert stranger(DOOR, "guest")
    assert stranger(DOOR, "")


@pytest.mark.parametrize(
    ("door", "greeting", "words"),
    [
        (DOOR, CONTROL, ""),
        (DOOR, RPC, "no control channel"),
        (DOOR, Greeting(Want.CONTROL, 2, "a"), "term 2 is asked for"),
        (DOOR, Greeting(Want.CONTROL, 4, "a"), "term 4 is asked for"),
        (DOOR, Greeting(Want.CONTROL, 3, ""), "names no group"),
        (DOOR, Greeting(Want.CONTROL, 3, "a", version=2), "upgrade meshd"),
        (Door("host", 3, "a", 0, controlled=True), RPC, ""),
        (Door("host", 3, "a", 1, controlled=True), RPC, ""),
        (Door("host", 3, "a", MOST_CONNECTIONS, controlled=True), RPC, "open already"),
        (Door("host", 3, "a", 1, controlled=False), RPC, "no control channel"),
        (Door("host", 3, "b", 1, controlled=True), CONTROL, "another engine"),
        (Door("host", 3, "b", 1, controlled=True), RPC, "another engine"),
        (Door("host", 3, "b", 0, controlled=True), CONTROL, ""),
        (Door("host", 3, "b", 1, controlled=False), CONTROL, ""),
        (Door("host", 3, "b", 0, controlled=True), RPC, "no control channel"),
    ],
)
def test_one_group_at_a_time(door: Door, greeting: Greeting, words: str) -> None:
    found = refusal(door, greeting)
    assert words in found
    assert bool(found) == bool(words)


def test_lines_of_the_guards_fit_their_bound_and_come_back() -> None:
    pong = Pong(2**60, False, "8.0.0", "x" * 700)
    assert decode(encode(pong).rstrip(), Pong) == pong
    assert len(encode(pong)) < LINE_BYTES
    with pytest.raises(ValueError, match="Invalid enum value"):
        decode(b'{"want": "everything"}', Greeting)
    with pytest.raises(ValueError, match="malformed"):
        decode(b"\xff\x00", Greeting)


def test_a_hello_is_told_from_garbage() -> None:
    assert is_hello(HELLO_REQUEST)
    assert not is_hello(HELLO_REQUEST[:-1])
    assert not is_hello(b"\x0f" + HELLO_REQUEST[1:])
    assert not is_hello(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n")


def test_triples() -> None:
    assert parse_triple("8.0.12") == (8, 0, 12)
    for bad in ("8.0", "8.0.x", "8.0.0.0", "-1.0.0", "8.0.999", ""):
        with pytest.raises(UserError):
            parse_triple(bad)
    assert triple_problem((8, 0, 0), (8, 0, 0)) == ""
    assert "on the member" in triple_problem((8, 0, 1), (8, 0, 0))
    assert "on the host" in triple_problem((8, 0, 0), (8, 1, 0))
    assert major_problem((8, 3, 1)) == ""
    assert "upgrade meshd" in major_problem((9, 0, 0))
    assert "upgrade the engine" in major_problem((7, 0, 0))
