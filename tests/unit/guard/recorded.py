"""Real bytes of both directions, and their frames, split by other means than the guard's."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

from meshd.guard.commands import RULES

_DATA = Path(__file__).resolve().parents[2] / "data/rpc"


def connection(name: str) -> Iterator[tuple[bool, bytes]]:
    """(towards rpc-server, one frame) in the order in which they were said."""
    requests, answers = (
        gzip.decompress((_DATA / f"{name}.{kind}.gz").read_bytes())
        for kind in ("requests", "answers")
    )
    at = 0
    while requests:
        end = 9 + struct.unpack_from("<Q", requests, 1)[0]
        frame, requests = requests[:end], requests[end:]
        yield True, frame
        if RULES[frame[0]].answer is not None:
            end = at + 8 + struct.unpack_from("<Q", answers, at)[0]
            yield False, answers[at:end]
            at = end
    assert at == len(answers)
