"""Doing what a `Member` wants done, a bounded amount of it at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from meshd.mesh.bus import Ask, Bus, BusError, Effect, Put

_PUTS_WAITING = 256
_ASKS_WAITING = 256
_ASKING_AT_ONCE = 8

Answered = Callable[[Ask, bytes | None], None]


class Effects:
    """:param bus: the session of the moment, None while there is none.

    :param answered: hears what came of every question; in the loop's thread.
    """

    def __init__(self, bus: Callable[[], Bus | None], answered: Answered) -> None:
        self._bus, self._answered = bus, answered
        self._puts: asyncio.Queue[bytes] = asyncio.Queue(_PUTS_WAITING)
        self._asks: asyncio.Queue[Ask] = asyncio.Queue(_ASKS_WAITING)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._put_all())]
        self._tasks += [asyncio.create_task(self._ask_all()) for _ in range(_ASKING_AT_ONCE)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def do(self, effects: list[Effect]) -> None:
        """What finds no room is lost, as on any network: anti-entropy heals."""
        for effect in effects:
            if isinstance(effect, Put):
                with contextlib.suppress(asyncio.QueueFull):
                    self._puts.put_nowait(effect.data)
                continue
            try:
                self._asks.put_nowait(effect)
            except asyncio.QueueFull:
                asyncio.get_running_loop().call_soon(self._answered, effect, None)

    async def settle(self, timeout_s: float) -> None:
        """Until all that was to be put has been put, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._puts.join(), timeout_s)

    async def _put_all(self) -> None:
        while True:
            data = await self._puts.get()
            bus = self._bus()
            if bus is not None:
                with contextlib.suppress(BusError):
                    await bus.put(data)
            self._puts.task_done()

    async def _ask_all(self) -> None:
        while True:
            ask = await self._asks.get()
            bus = self._bus()
            answer = None
            if bus is not None:
                answer = await bus.ask(ask.target, ask.data, ask.timeout_s)
            self._answered(ask, answer)
