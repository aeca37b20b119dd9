"""Debian's own llama-server.service is not in the way."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity

_NAME = "llama-server.service"


def check(evidence: Evidence) -> Iterator[Issue]:
    unit = evidence.unit(_NAME)
    if unit is None or unit.load != "loaded":
        return
    runs = unit.active in ("active", "activating", "reloading")
    if runs or unit.enabled == "enabled":
        yield Issue(
            "debian.llama-server",
            Severity.WARNING,
            "Debian's llama-server.service takes memory that meshd counts on",
            (f"{_NAME} is {unit.active} and {unit.enabled or 'not enabled'} (port 9931)",),
            f"systemctl disable --now {_NAME}",
        )
