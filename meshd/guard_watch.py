"""Asks this node's guards how they are, twice a second, over their Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import aiohttp
import msgspec

from meshd.guard.status import GuardStatus

_INTERVAL_S = 0.5
_DEADLINE_S = 1.0
_MISSES_TO_FORGET = 4
_ANSWER_MAX_BYTES = 256 * 1024

_decoder = msgspec.json.Decoder(GuardStatus)


async def ask(socket: Path, *, deadline_s: float = _DEADLINE_S) -> GuardStatus | None:
    """What the guard behind this socket says of itself; None where none answers."""
    timeout = aiohttp.ClientTimeout(total=deadline_s)
    connector = aiohttp.UnixConnector(path=str(socket))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get("http://guard/status") as response,
        ):
            if response.status != 200:
                return None
            return _decoder.decode(await response.content.read(_ANSWER_MAX_BYTES))
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError):
        return None


class GuardWatch:
    """:param on_change: called in the event loop when something changed that a plan depends on."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._tasks: dict[Path, asyncio.Task[None]] = {}
        self._said: dict[Path, GuardStatus] = {}

    def watch(self, sockets: frozenset[Path]) -> None:
        """Ask exactly these from now on."""
        for gone in self._tasks.keys() - sockets:
            self._tasks.pop(gone).cancel()
            self._said.pop(gone, None)
        for new in sockets - self._tasks.keys():
            self._tasks[new] = asyncio.create_task(self._ask(new), name=f"guard {new.parent.name}")

    def said(self) -> Mapping[str, GuardStatus]:
        """By instance, of those that answer."""
        return {status.name: status for status in self._said.values()}

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _ask(self, socket: Path) -> None:
        misses = 0
        while True:
            before, now = self._said.get(socket), await ask(socket)
            if now is not None:
                misses = 0
                self._said[socket] = now
            else:
                # One that is restarted has lost nothing yet that a plan should know.
                misses += 1
                if misses >= _MISSES_TO_FORGET:
                    self._said.pop(socket, None)
            if _gist(before) != _gist(self._said.get(socket)):
                self._on_change()
            await asyncio.sleep(_INTERVAL_S)


def _gist(status: GuardStatus | None) -> object:
    """What a plan depends on: not how many bytes went by."""
    if status is None:
        return None
    peers = [(p.node, p.reached, p.problem, p.silences, p.losses) for p in status.peers]
    return status.term, status.started_s, peers
