"""The clock is right: certificates and records of other nodes depend on it."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.kernel.clock_synchronised is False:
        yield Issue(
            "clock.not-synchronised",
            Severity.WARNING,
            "the clock is not synchronised",
            ("timedatectl: NTPSynchronized=no",),
            "apt install systemd-timesyncd && timedatectl set-ntp true",
        )
