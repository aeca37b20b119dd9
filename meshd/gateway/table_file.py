"""The routing table on disk: replaced whole by the brain, read whole by the gateway."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from meshd.files import write_atomically
from meshd.gateway.routes import RoutingTable, RoutingTableError, decode, encode

MAX_TABLE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LoadedTable:
    """:ivar written_s: Unix time of the file's last change."""

    table: RoutingTable
    written_s: float


def write_table(path: Path, table: RoutingTable) -> None:
    """Replace the table at once; readable by the gateway's user.

    :raises OSError: the folder is missing, full or not writable; the old table is untouched.
    """
    write_atomically(path, encode(table))


def read_table(path: Path) -> LoadedTable:
    """Read and check the table.

    :raises RoutingTableError: it is missing, unreadable, too large or malformed.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TABLE_BYTES + 1)
            written_s = os.fstat(file.fileno()).st_mtime
    except OSError as error:
        raise RoutingTableError(f"routing table {path}: {error.strerror}") from None
    if len(text) > MAX_TABLE_BYTES:
        raise RoutingTableError(f"routing table {path}: larger than {MAX_TABLE_BYTES} bytes")
    return LoadedTable(decode(text), written_s)
