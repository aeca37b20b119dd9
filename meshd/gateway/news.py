"""Wakes those who wait for something to change, without saying what."""

from __future__ import annotations

import asyncio


class News:
    """:ivar count: how often there was news."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wake everybody who waits now."""
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def after(self, count: int) -> None:
        """Returns when there was news since `count` was read."""
        while self.count == count:
            await self._event.wait()
