"""Whether an engine answers, asked over its Unix socket until it does, then now and again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

_LOADING_INTERVAL_S = 0.2
_READY_INTERVAL_S = 2.0
_DEADLINE_S = 2.0
# A busy engine may be slow to answer; only several misses in a row take it out of the table.
_MISSES_TO_FAIL = 3


@dataclass(frozen=True, slots=True)
class Watched:
    """One engine process. A new pid is a new process, whose health is unknown."""

    unit: str
    pid: int
    socket: Path


async def answers(socket: Path, *, deadline_s: float = _DEADLINE_S) -> bool:
    """True when `GET /health` is 200: llama-server answers 503 while it loads."""
    timeout = aiohttp.ClientTimeout(total=deadline_s)
    connector = aiohttp.UnixConnector(path=str(socket))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get("http://engine/health") as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


class HealthMonitor:
    """Keeps one probing task for each watched engine.

    :param on_change: called in the event loop whenever an engine's answer changed.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._tasks: dict[Watched, asyncio.Task[None]] = {}
        self._ready: set[Watched] = set()

    def watch(self, engines: set[Watched]) -> None:
        """Watch exactly these from now on."""
        for gone in self._tasks.keys() - engines:
            self._tasks.pop(gone).cancel()
            self._ready.discard(gone)
        for new in engines - self._tasks.keys():
            self._tasks[new] = asyncio.create_task(self._probe(new), name=f"health {new.unit}")

    async def ask(self, engines: set[Watched]) -> None:
        """Watch these, and return when each was asked once."""
        asked = list(engines)
        said = await asyncio.gather(*(answers(engine.socket) for engine in asked))
        self._ready.update(engine for engine, well in zip(asked, said, strict=True) if well)
        self.watch(engines)

    def ready(self, unit: str, pid: int | None) -> bool:
        return any(w.unit == unit and w.pid == pid for w in self._ready)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _probe(self, engine: Watched) -> None:
        misses = 0
        while True:
            if await answers(engine.socket):
                misses = 0
                if engine not in self._ready:
                    self._ready.add(engine)
                    self._on_change()
            else:
                misses += 1
                if misses >= _MISSES_TO_FAIL and engine in self._ready:
                    self._ready.discard(engine)
                    self._on_change()
            await asyncio.sleep(_READY_INTERVAL_S if engine in self._ready else _LOADING_INTERVAL_S)
