"""What the brain tells others after each pass: the gateway, systemd, people, and the next life."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from meshd import said
from meshd.config.load import Loaded, SourceFile
from meshd.gateway.routes import RoutingTable
from meshd.load_times import Load
from meshd.mesh_routes import Ways
from meshd.notify import Notifier
from meshd.paths import Paths
from meshd.pipeline import Proposal
from meshd.status import NodeStatus

_log = structlog.get_logger(__name__)


class Outlets(Protocol):
    """The port to where it is kept."""

    def save_good(self, files: tuple[SourceFile, ...], summary: str) -> None: ...

    def write_routes(self, table: RoutingTable) -> None:
        """:raises OSError: the table cannot be written; the old one is untouched."""

    def load_routes(self) -> RoutingTable | None:
        """The last table of an earlier life, if there is one."""


class Publisher:
    """Says only what changed since the last time.

    :param wake: called when something could not be said and should be tried soon again.
    :ivar status: what was last said, None before the first time.
    :ivar table_error: why the routing table on disk is not the last one, or "".
    """

    def __init__(
        self, paths: Paths, outlets: Outlets, notifier: Notifier, wake: Callable[[], None]
    ) -> None:
        self._paths = paths
        self._outlets = outlets
        self._notifier = notifier
        self._wake = wake
        self._table: RoutingTable | None = None
        self._former = outlets.load_routes()
        self.status: NodeStatus | None = None
        self.table_error = ""

    def publish(
        self,
        loaded: Loaded,
        proposal: Proposal,
        status: NodeStatus,
        ways: Ways | None,
        *,
        on_trial: bool,
        loads: Mapping[str, Load] | None = None,
    ) -> None:
        """:param loads: those under way here, by model."""
        before = self._table or self._former
        table = said.routes(loaded.config, proposal, status, self._paths, before, ways, loads)
        if table != self._table:
            self._write_routes(table)
        if self.status is None or status.sentence != self.status.sentence:
            _log.info(status.sentence)
            self._notifier.status(status.sentence)
        self.status = status
        if status.good and not on_trial:
            self._outlets.save_good(loaded.files, status.sentence)

    def _write_routes(self, table: RoutingTable) -> None:
        before, self.table_error = self.table_error, ""
        try:
            self._outlets.write_routes(table)
            self._table = table
        except OSError as error:
            # The gateway goes on with the table it has; the next pass tries again.
            self.table_error = f"the routing table cannot be written: {error}"
        if self.table_error != before:
            _log.error(self.table_error or "the routing table can be written again")
            self._wake()
