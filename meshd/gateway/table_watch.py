"""Follows the routing table on disk, and keeps the last good one whatever happens to the file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from watchfiles import Change, awatch

from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.routes import RoutingTable, RoutingTableError
from meshd.gateway.table_file import LoadedTable, read_table

_DEBOUNCE_MS = 50
_STEP_MS = 10
# A safety net under inotify: a folder that was removed and made again has no events for us.
_LOOK_MS = 1000
_RETRY_S = 0.5

_log = structlog.get_logger("meshd.gateway")

_Signature = tuple[int, int, int]


class TableWatch:
    """:ivar error: why the file on disk is not the table in use, or ""."""

    def __init__(
        self,
        path: Path,
        metrics: GatewayMetrics,
        on_change: Callable[[RoutingTable], None],
        prepare: Callable[[RoutingTable], Awaitable[object]] | None = None,
    ) -> None:
        """:param prepare: awaited with each table before it is in use."""
        self.path = path
        self.error = "the routing table has not been read yet"
        self._metrics = metrics
        self._on_change = on_change
        self._prepare = prepare
        self._loaded: LoadedTable | None = None
        self._seen: tuple[_Signature | None, _Signature | None] | None = None
        metrics.follow_table_age(lambda: self._loaded.written_s if self._loaded else None)

    @property
    def table(self) -> RoutingTable | None:
        """The last good table."""
        return self._loaded.table if self._loaded else None

    async def refresh(self) -> None:
        """Read the file again if it is another than the one that was read last."""
        seen = await asyncio.to_thread(self._signatures)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            loaded = await asyncio.to_thread(read_table, self.path)
        except RoutingTableError as error:
            self.error = str(error)
            self._metrics.table_valid.set(0)
            self._metrics.table_errors.inc()
            _log.warning("routing table not usable, the last good one stays", error=self.error)
            return
        if self._prepare is not None:
            await self._prepare(loaded.table)
        self._loaded, self.error = loaded, ""
        self._metrics.table_valid.set(1)
        self._metrics.table_generation.set(loaded.table.generation)
        _log.info(
            "routing table loaded",
            generation=loaded.table.generation,
            models=len(loaded.table.routes),
        )
        self._on_change(loaded.table)

    async def run(self) -> None:
        """Follow the file until cancelled."""
        name = self.path.name

        def ours(_: Change, path: str) -> bool:
            return Path(path).name == name

        while True:
            await self.refresh()
            folder = self._folder()
            try:
                async for _ in awatch(
                    self.path.parent,
                    watch_filter=ours,
                    debounce=_DEBOUNCE_MS,
                    step=_STEP_MS,
                    rust_timeout=_LOOK_MS,
                    yield_on_timeout=True,
                    recursive=False,
                ):
                    await self.refresh()
                    if self._folder() != folder:
                        break
            except (OSError, RuntimeError):
                # The folder is not there, or inotify has no room: look again by and by.
                await asyncio.sleep(_RETRY_S)

    def _folder(self) -> _Signature | None:
        return self._seen[0] if self._seen else None

    def _signatures(self) -> tuple[_Signature | None, _Signature | None]:
        return _identity(self.path.parent), _signature(self.path)


def _identity(path: Path) -> _Signature | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, 0


def _signature(path: Path) -> _Signature | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
