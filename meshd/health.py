"""How engines are, asked over their Unix sockets again and again; `progress` says what it means."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import structlog

from meshd.engine_counts import slots_of, totals, with_slots
from meshd.guard.status import GuardStatus
from meshd.progress import (
    Counts,
    Health,
    Reply,
    Sample,
    Track,
    Verdict,
    Work,
    after,
    begin,
    verdict,
)

_log = structlog.get_logger(__name__)

_LOADING_INTERVAL_S = 0.2
_READY_INTERVAL_S = 2.0
_MISSED_INTERVAL_S = 0.3
# A busy engine may be slow to answer.
_DEADLINE_S = 3.0
_COUNTS_DEADLINE_S = 2.0
_BODY_MAX_BYTES = 4 * 1024**2
_GONE_KEPT = 128


@dataclass(frozen=True, slots=True)
class Watched:
    """One engine process. A new pid is a new process, whose health is unknown.

    :ivar guard: where a guard would be between it and other nodes, were it a split's.
    """

    unit: str
    pid: int
    socket: Path
    guard: Path


class HealthMonitor:
    """Keeps one probing task for each watched engine, which has one question open at most.

    :param on_change: called in the event loop whenever what is to be said of an engine changed.
    :param clock: monotonic seconds.
    """

    def __init__(
        self, on_change: Callable[[], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_change = on_change
        self._clock = clock
        self._tasks: dict[Watched, asyncio.Task[None]] = {}
        self._tracks: dict[Watched, Track] = {}
        self._verdicts: dict[tuple[str, int], Verdict] = {}
        self._former: dict[str, Track] = {}
        self._work: Mapping[str, Work] = {}

    def watch(self, engines: set[Watched], work: Mapping[str, Work] | None = None) -> None:
        """Watch exactly these from now on.

        :param work: what they have to do, by unit.
        """
        if work is not None:
            self._work = work
        for gone in self._tasks.keys() - engines:
            self._tasks.pop(gone).cancel()
            self._remember(gone)
        for new in engines - self._tasks.keys():
            self._tasks[new] = asyncio.create_task(self._probe(new), name=f"health {new.unit}")

    async def ask(self, engines: set[Watched]) -> None:
        """Watch these, and return when each was asked once."""
        await asyncio.gather(*(self._ask_once(engine) for engine in engines))
        self.watch(engines)

    def ready(self, unit: str, pid: int | None) -> bool:
        found = self.verdict(unit, pid)
        return found is not None and found.health is Health.FINE

    def verdict(self, unit: str, pid: int | None) -> Verdict | None:
        """None of an engine that was not looked at yet."""
        return self._verdicts.get((unit, pid)) if pid is not None else None

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _ask_once(self, engine: Watched) -> None:
        async with _session(engine.socket) as session, _session(engine.guard) as guard:
            self._take(engine, await self._look(engine, session, guard))

    async def _probe(self, engine: Watched) -> None:
        async with _session(engine.socket) as session, _session(engine.guard) as guard:
            while True:
                self._take(engine, await self._look(engine, session, guard))
                await asyncio.sleep(self._interval_s(engine))

    async def _look(
        self,
        engine: Watched,
        session: aiohttp.ClientSession,
        guard: aiohttp.ClientSession,
    ) -> Sample:
        reply = await _reply(session)
        counts = await _counts(session) if reply is Reply.READY else None
        there = await asyncio.to_thread(engine.guard.exists)
        call_s, allowance_s = await _oldest_call(guard) if there else (0.0, 0.0)
        return Sample(self._clock(), reply, counts, call_s, allowance_s)

    def _take(self, engine: Watched, sample: Sample) -> None:
        """Note what was seen, and say so when it changes the verdict."""
        work = self._work.get(engine.unit, Work())
        known = self._tracks.get(engine) or begin(sample.at_s, self._former.get(engine.unit))
        track = self._tracks[engine] = after(known, sample, work)
        key = (engine.unit, engine.pid)
        before = self._verdicts.get(key)
        now = self._verdicts[key] = verdict(track, sample.at_s, work)
        if (before.health if before else Health.LOADING) is now.health:
            return
        if now.lost:
            _log.warning("engine", unit=engine.unit, pid=engine.pid, state=now.health, why=now.why)
        self._on_change()

    def _interval_s(self, engine: Watched) -> float:
        track = self._tracks[engine]
        if self._verdicts[(engine.unit, engine.pid)].lost:
            return _READY_INTERVAL_S
        if not track.ready:
            return _LOADING_INTERVAL_S
        return _MISSED_INTERVAL_S if track.misses else _READY_INTERVAL_S

    def _remember(self, gone: Watched) -> None:
        self._verdicts.pop((gone.unit, gone.pid), None)
        track = self._tracks.pop(gone, None)
        if track is None:
            return
        self._former.pop(gone.unit, None)
        self._former[gone.unit] = track
        if len(self._former) > _GONE_KEPT:
            del self._former[next(iter(self._former))]


def _session(socket: Path) -> aiohttp.ClientSession:
    # Of a frozen engine no connection may be left open, nor may they pile up in its backlog.
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path=str(socket), force_close=True, limit=1),
        timeout=aiohttp.ClientTimeout(total=_COUNTS_DEADLINE_S),
    )


async def _reply(session: aiohttp.ClientSession) -> Reply:
    """llama-server answers 503 while it loads."""
    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    try:
        async with session.get("http://engine/health", timeout=timeout) as response:
            return Reply.READY if response.status == 200 else Reply.LOADING
    except aiohttp.ClientConnectorError:
        return Reply.ABSENT
    except (aiohttp.ClientError, TimeoutError, OSError):
        return Reply.SILENT


async def _counts(session: aiohttp.ClientSession) -> Counts | None:
    try:
        counts = totals((await _body(session, "/metrics")).decode("utf-8", "replace"))
        if counts is None or not counts.busy:
            return counts
        return with_slots(counts, slots_of(await _body(session, "/slots")))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


async def _oldest_call(session: aiohttp.ClientSession) -> tuple[float, float]:
    """Of the guard's calls the one that is furthest beyond its allowance, with that."""
    try:
        status = msgspec.json.decode(await _body(session, "/status"), type=GuardStatus)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
        # What it cannot say any more, the engine's own progress shows.
        return 0.0, 0.0
    calls = [(peer.oldest_call_s, peer.allowance_s) for peer in status.peers]
    return max(calls, key=lambda call: call[0] - call[1], default=(0.0, 0.0))


async def _body(session: aiohttp.ClientSession, path: str) -> bytes:
    """:raises ValueError: not a 200, or too long."""
    async with session.get(f"http://engine{path}") as response:
        if response.status != 200:
            raise ValueError(f"{path}: {response.status}")
        data = bytearray()
        async for piece in response.content.iter_any():
            data += piece
            if len(data) > _BODY_MAX_BYTES:
                raise ValueError(f"{path}: more than {_BODY_MAX_BYTES} bytes")
        return bytes(data)
