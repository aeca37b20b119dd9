"""There is room for state and for models."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Disk, Evidence
from meshd.doctor.issue import Issue, Severity

MIB = 1024**2
GIB = 1024**3

_STATE_ERROR_BYTES = 64 * MIB
_STATE_WARN_BYTES = 512 * MIB
_MODELS_WARN_BYTES = 2 * GIB


def check(evidence: Evidence) -> Iterator[Issue]:
    for disk in evidence.disks:
        severity = _severity(disk)
        if severity is None:
            continue
        yield Issue(
            f"disk.full:{disk.path}",
            severity,
            f"the disk of {disk.path} ({disk.used_for}) is nearly full",
            (f"{disk.free_bytes / GIB:.2f} GiB free of {disk.total_bytes / GIB:.1f} GiB",),
            f"du -xh --max-depth=2 {disk.path} | sort -h | tail   # and delete what is not needed",
        )


def _severity(disk: Disk) -> Severity | None:
    if disk.used_for == "state":
        if disk.free_bytes < _STATE_ERROR_BYTES:
            return Severity.ERROR
        return Severity.WARNING if disk.free_bytes < _STATE_WARN_BYTES else None
    # A full disk of models serves well; only fetching another one will not work.
    return Severity.WARNING if disk.free_bytes < _MODELS_WARN_BYTES else None
