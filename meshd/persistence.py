"""What the brain keeps on disk: generations, the running plan, the routing table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog

from meshd.config.load import Loaded, SourceFile, load, parse_layers
from meshd.files import write_atomically
from meshd.gateway.routes import RoutingTable, RoutingTableError
from meshd.gateway.table_file import read_table, write_table
from meshd.generations import Generation, GenerationStore
from meshd.paths import Paths
from meshd.planner.lent import Lent
from meshd.planner.view import Running

_log = structlog.get_logger(__name__)

_SIZE_LIMIT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _RunningFile:
    generation: int
    running: tuple[Running, ...]
    lent: tuple[Lent, ...] = ()


class Disk:
    """The real `supervisor.Memory`. What runs lies under /run: after a boot nothing runs."""

    def __init__(self, paths: Paths, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._paths = paths
        self._wall_clock = wall_clock
        self._store = GenerationStore(paths.generations)
        self._plan_file = paths.run / "running.json"
        self._saved: tuple[SourceFile, ...] | None = None

    def load_config(self) -> Loaded:
        return load(self._paths)

    def parse(self, files: tuple[SourceFile, ...]) -> Loaded:
        return parse_layers(files)

    def last_good(self) -> list[Generation]:
        return self._store.newest_first()

    def save_good(self, files: tuple[SourceFile, ...], summary: str) -> None:
        if files == self._saved:
            return
        try:
            self._store.save(files, now_s=self._wall_clock(), summary=summary)
            self._saved = files
        except OSError as error:
            # A full disk must not end a node that serves; the doctor looks at disks.
            _log.error("the good configuration could not be kept", error=str(error))

    def load_running(self) -> tuple[tuple[Running, ...], int, tuple[Lent, ...]]:
        try:
            if self._plan_file.stat().st_size > _SIZE_LIMIT_BYTES:
                return (), 0, ()
            kept = msgspec.json.decode(self._plan_file.read_bytes(), type=_RunningFile)
        except FileNotFoundError:
            return (), 0, ()
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("what ran before is not known, planning afresh", error=str(error))
            return (), 0, ()
        return kept.running, kept.generation, kept.lent

    def save_running(
        self, running: tuple[Running, ...], generation: int, lent: tuple[Lent, ...] = ()
    ) -> None:
        try:
            data = msgspec.json.encode(_RunningFile(generation, running, lent))
            write_atomically(self._plan_file, data)
        except OSError as error:
            # What a next life would go by; this one has it in memory.
            _log.error("what runs could not be kept", error=str(error))

    def write_routes(self, table: RoutingTable) -> None:
        write_table(self._paths.routes, table)

    def load_routes(self) -> RoutingTable | None:
        try:
            return read_table(self._paths.routes).table
        except RoutingTableError:
            return None
