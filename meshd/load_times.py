"""How long models took to load on this node, and what that says of the next load. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import msgspec

from meshd.planner.view import Candidate

SCHEMA = 1
FILE_MAX_BYTES = 128 * 1024

# The last of each model: a first load reads a disk, the next ones find the file in memory.
_KEPT_OF_ONE = 5
_KEPT = 200
_CONTENT_MAX_CHARACTERS = 256
# A load of a far smaller file is mostly the engine's start and says nothing of bytes a second.
_SMALLEST_SHARE = 1 / 8


@dataclass(frozen=True, slots=True)
class LoadTime:
    """One load. :ivar content: what was loaded, the same wherever the file lies.

    :ivar seconds: from the engine's start until it answered. :ivar size_bytes: of its files.
    """

    content: str
    seconds: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """A load that is under way.

    :ivar load_s: how long it takes by what was measured, 0 when nothing was.
    :ivar since_s: monotonic, when it began.
    """

    load_s: float
    since_s: float


@dataclass(frozen=True, slots=True)
class LoadTimes:
    """:ivar loads: the latest last, a bounded number."""

    loads: tuple[LoadTime, ...] = ()

    def after(self, load: LoadTime) -> LoadTimes:
        """With one more that was measured."""
        if not load.content or load.seconds <= 0:
            return self
        same = [one for one in self.loads if one.content == load.content]
        old = set(map(id, same[: max(0, len(same) - _KEPT_OF_ONE + 1)]))
        kept = [one for one in self.loads if id(one) not in old]
        return LoadTimes((*kept, load)[-_KEPT:])

    def predicted_s(self, content: str, size_bytes: int) -> float:
        """The median of the model's own loads, else its size at the speed of other loads; 0 when
        nothing comparable was measured.

        :param size_bytes: of its files.
        """
        own = [one.seconds for one in self.loads if content and one.content == content]
        if own:
            return median(own)
        speeds = [
            one.size_bytes / one.seconds
            for one in self.loads
            if one.size_bytes >= max(1, size_bytes * _SMALLEST_SHARE)
        ]
        return size_bytes / median(speeds) if speeds else 0.0


@dataclass(frozen=True, slots=True)
class _File:
    schema: int
    loads: tuple[LoadTime, ...]


def content_of(candidate: Candidate | None) -> str:
    """What a model's load times are kept under, "" for none."""
    return (candidate.fingerprint or candidate.identity) if candidate else ""


def encode(times: LoadTimes) -> bytes:
    """JSON, as `decode` reads it."""
    return msgspec.json.encode(_File(SCHEMA, times.loads)) + b"\n"


def decode(data: bytes) -> LoadTimes:
    """What an earlier life measured; entries that cannot be are passed over.

    :raises ValueError: no such file, or of another schema.
    """
    if len(data) > FILE_MAX_BYTES:
        raise ValueError(f"{len(data)} bytes, at most {FILE_MAX_BYTES}")
    try:
        found = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if found.schema != SCHEMA:
        raise ValueError(f"schema {found.schema}, this is {SCHEMA}")
    times = LoadTimes()
    for one in found.loads:
        if len(one.content) <= _CONTENT_MAX_CHARACTERS and one.size_bytes >= 0:
            times = times.after(one)
    return times
