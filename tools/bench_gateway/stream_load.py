"""Streams side by side: when the first byte came, how evenly the rest, and what it cost."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field

from tools.bench_gateway import asked
from tools.bench_gateway.http_lane import Lane, LaneError
from tools.bench_gateway.process_tree import Tree, machine_busy_s

_WRITTEN = re.compile(rb'"t(\d+) "')
_DONE = b"data: [DONE]"
# Streams start so far apart at most when many are opened at once.
_OPEN_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Shape:
    """:ivar streams: at the same time. :ivar tokens: of each. :ivar interval_ms: between them."""

    streams: int
    tokens: int
    interval_ms: int


@dataclass(slots=True)
class Streamed:
    """:ivar first_ms: from the request to the first event, of each stream.

    :ivar uneven_ms: of each two tokens: how much the time between their arrivals differs from that
        between their writings.
    :ivar busy: share of the machine's cores that was in use, 0 to 1.
    """

    first_ms: list[float] = field(default_factory=list)
    uneven_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    failed: int = 0
    cpu_s: float = 0.0
    busy: float = 0.0


class _Stream(Lane):
    """One stream after the other, for as long as it is not stopped."""

    def __init__(self, port: int, request: bytes) -> None:
        super().__init__(port)
        self._request = request
        self.seen: Streamed | None = None
        self.begun = asyncio.Event()
        self.stopped = False

    def go(self) -> None:
        if self.stopped:
            return
        self._rest = b""
        self._last_ns: tuple[int, int] | None = None
        self._done = False
        self._sent_ns = time.monotonic_ns()
        # Streams that began before the measuring do not count, their tokens do.
        self._counts = self.seen is not None
        self.ask(self._request)

    def data_received(self, data: bytes) -> None:
        self._now_ns = time.monotonic_ns()
        super().data_received(data)

    def body(self, data: bytes) -> None:
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            found = _WRITTEN.search(event)
            if found is not None:
                self._token(int(found[1]))
            elif event.startswith(_DONE):
                self._done = True

    def _token(self, written_ns: int) -> None:
        seen, last, now_ns = self.seen, self._last_ns, self._now_ns
        self._last_ns = (written_ns, now_ns)
        if last is None:
            self.begun.set()
        if seen is None:
            return
        seen.tokens += 1
        if last is not None:
            seen.uneven_ms.append(abs((now_ns - last[1]) - (written_ns - last[0])) / 1e6)
        elif self._counts:
            seen.first_ms.append((now_ns - self._sent_ns) / 1e6)

    def answered(self) -> None:
        if self.seen is not None and not (self.status == 200 and self._done):
            self.seen.failed += 1
        asyncio.get_running_loop().call_soon(self.go)

    def broke(self, why: str) -> None:
        if self.seen is not None:
            self.seen.failed += 1
        asyncio.get_running_loop().call_later(0.05, self.go)


async def measure_streams(port: int, tree: Tree, shape: Shape, for_s: float) -> Streamed:
    """Streams that begin evenly spread over the time that one takes.

    :raises LaneError: the proxy takes no connections.
    """
    request = asked.streaming(shape.tokens, shape.interval_ms)
    lanes = [_Stream(port, request) for _ in range(shape.streams)]
    each_s = shape.tokens * shape.interval_ms / 1000
    try:
        for lane in lanes:
            await lane.open()
        for lane in lanes:
            lane.go()
            await asyncio.sleep(each_s / shape.streams)
        seen = Streamed()
        cpu_s, (busy_s, all_s) = tree.cpu_s(), machine_busy_s()
        for lane in lanes:
            lane.seen = seen
        await asyncio.sleep(for_s)
        for lane in lanes:
            lane.seen = None
        now_busy_s, now_all_s = machine_busy_s()
        seen.cpu_s = tree.cpu_s() - cpu_s
        seen.busy = (now_busy_s - busy_s) / (now_all_s - all_s)
        return seen
    finally:
        _stop(lanes)


@dataclass(frozen=True, slots=True)
class Held:
    """:ivar streams: how many had begun. :ivar bytes: PSS of the proxy with them, and before."""

    streams: int
    pss_bytes: int
    before_bytes: int


async def measure_held(port: int, tree: Tree, streams: int, timeout_s: float) -> Held:
    """Memory while so many streams are open, have begun and say nothing."""
    hour_ms = 3_600_000
    request = asked.streaming(2, hour_ms)
    before = tree.pss_bytes()
    lanes = [_Stream(port, request) for _ in range(streams)]
    try:
        waiting = []
        for start in range(0, streams, _OPEN_AT_ONCE):
            some = lanes[start : start + _OPEN_AT_ONCE]
            opened = await asyncio.gather(*(lane.open() for lane in some), return_exceptions=True)
            for lane, failed in zip(some, opened, strict=True):
                if failed is None:
                    lane.go()
                    waiting.append(asyncio.create_task(lane.begun.wait()))
                elif not isinstance(failed, LaneError):
                    raise failed
            await asyncio.sleep(0.05)
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
            for task in late:
                task.cancel()
        begun = sum(lane.begun.is_set() for lane in lanes)
        return Held(begun, tree.pss_bytes(), before)
    finally:
        _stop(lanes)


def _stop(lanes: list[_Stream]) -> None:
    for lane in lanes:
        lane.stopped = True
        lane.close()
