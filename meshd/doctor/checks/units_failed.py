"""None of our units has failed or starts over and over."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity

_MANY_RESTARTS = 3


def check(evidence: Evidence) -> Iterator[Issue]:
    for unit in evidence.units:
        if not unit.name.startswith("mesh"):
            continue
        log = f"journalctl -u {unit.name} -b -n 50"
        seen = (f"{unit.name}: {unit.active} ({unit.sub}), result {unit.result}",)
        if unit.active == "failed":
            yield Issue(
                f"unit.failed:{unit.name}",
                Severity.ERROR,
                f"{unit.name} has failed",
                seen,
                f"{log}; systemctl reset-failed {unit.name}; systemctl restart {unit.name}",
            )
        elif unit.sub.startswith("auto-restart") or (
            unit.restarts >= _MANY_RESTARTS and unit.active != "active"
        ):
            yield Issue(
                f"unit.restarting:{unit.name}",
                Severity.ERROR,
                f"{unit.name} does not stay up",
                (*seen, f"{unit.restarts} automatic restarts"),
                log,
            )
        elif unit.restarts >= _MANY_RESTARTS:
            yield Issue(
                f"unit.restarted:{unit.name}",
                Severity.WARNING,
                f"{unit.name} runs now but was restarted {unit.restarts} times",
                seen,
                log,
            )
