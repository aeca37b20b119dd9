"""meshd can write its folders and nobody else can."""

from __future__ import annotations

from collections.abc import Iterator

from meshd import paths
from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity

_OWNER = "_meshd"
_OTHERS_WRITE = 0o002
_STICKY = 0o1000
_MEND = "systemd-tmpfiles --create /usr/lib/tmpfiles.d/mesh.conf"


def check(evidence: Evidence) -> Iterator[Issue]:
    service = evidence.paths == paths.SYSTEM and evidence.unit("meshd.service") is not None
    for folder in evidence.folders:
        if folder.mode is None:
            continue  # made when meshd first starts
        seen = (f"{folder.path}: owner {folder.owner}, mode {folder.mode:04o}",)
        if folder.mode & _OTHERS_WRITE and not folder.mode & _STICKY:
            yield Issue(
                f"folder.open:{folder.path}",
                Severity.ERROR,
                f"everybody may write in {folder.path}, so anybody may command meshd",
                seen,
                f"chmod o-w {folder.path}",
            )
        elif service and folder.owner != _OWNER:
            yield Issue(
                f"folder.owner:{folder.path}",
                Severity.ERROR,
                f"{folder.path} does not belong to {_OWNER}, so meshd cannot write there",
                seen,
                f"chown -R {_OWNER}: {folder.path} && {_MEND}",
            )
