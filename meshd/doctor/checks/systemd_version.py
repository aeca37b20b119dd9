"""systemd knows Type=notify-reload, by which a reload can be refused."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity

NOTIFY_RELOAD = 253  # systemd's NEWS, version 253


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.systemd is None or evidence.systemd >= NOTIFY_RELOAD:
        return
    installed = any(unit.name == "meshd.service" for unit in evidence.units)
    yield Issue(
        "systemd.too-old",
        Severity.ERROR if installed else Severity.NOTE,
        f"systemd {evidence.systemd} is too old to run meshd as a service",
        (f"meshd.service is of Type=notify-reload, which systemd {NOTIFY_RELOAD} brought",),
        "upgrade to Debian 13 or later; until then: meshd run",
    )
