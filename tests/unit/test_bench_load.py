"""The benchmark's relay counts messages, however they are cut."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as some

from tools.bench_load.meter import _Frames


@given(
    some.lists(some.tuples(some.integers(0, 22), some.integers(0, 40)), max_size=8),
    some.integers(1, 30),
    some.booleans(),
)
def test_messages_in_pieces(messages: list[tuple[int, int]], cut: int, forth: bool) -> None:
    stream = b"".join(
        (bytes([command]) if forth else b"") + struct.pack("<Q", size) + b"\xff" * size
        for command, size in messages
    )
    frames = _Frames(forth)
    begun = [
        command
        for at in range(0, len(stream), cut)
        for command in frames.feed(memoryview(stream)[at : at + cut])
    ]
    assert begun == [command if forth else 0 for command, _ in messages]
