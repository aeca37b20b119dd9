"""Follows the files with API keys. A file that breaks takes no key away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from watchfiles import awatch

from meshd.keys.key_folder import KeyFolder, KeyPlaces, Signature
from meshd.keys.key_ring import KeyRing

_DEBOUNCE_MS = 50
_STEP_MS = 10
# A safety net under inotify: a folder that was removed and made again has no events for us.
_LOOK_MS = 1000
_RETRY_S = 1.0

_log = structlog.get_logger("meshd.gateway")


class KeyWatch:
    """:ivar ring: the keys in force."""

    def __init__(
        self, where: KeyPlaces | None, changed: Callable[[KeyRing], None] = lambda _: None
    ) -> None:
        """:param where: None for no keys at all. :param changed: hears of each new ring."""
        self.ring = KeyRing()
        self._folder = KeyFolder(where) if where else None
        self._changed = changed
        self._seen: Signature | None = None

    async def refresh(self) -> None:
        """Read the files again if any is another one."""
        folder = self._folder
        if folder is None:
            return
        seen = await asyncio.to_thread(folder.where.signature)
        if seen == self._seen:
            return
        self._seen = seen
        before, self.ring = self.ring, await asyncio.to_thread(folder.read)
        for error in self.ring.errors:
            if error not in before.errors:
                _log.warning("API keys not usable", error=error)
        if before.by_digest != self.ring.by_digest:
            _log.info("API keys loaded", keys=len(self.ring.by_digest))
        self._changed(self.ring)

    async def run(self) -> None:
        """Follow them until cancelled."""
        if self._folder is None:
            return
        folder = self._folder.where.folder
        while True:
            await self.refresh()
            try:
                identity = await asyncio.to_thread(folder.stat)
                async for _ in awatch(
                    folder,
                    debounce=_DEBOUNCE_MS,
                    step=_STEP_MS,
                    rust_timeout=_LOOK_MS,
                    yield_on_timeout=True,
                    recursive=False,
                ):
                    await self.refresh()
                    if (await asyncio.to_thread(folder.stat)).st_ino != identity.st_ino:
                        break
            except (OSError, RuntimeError):
                # The folder is not there, or inotify has no room: look again by and by.
                await asyncio.sleep(_RETRY_S)
