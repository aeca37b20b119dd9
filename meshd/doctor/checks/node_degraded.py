"""What the running meshd itself says is not as it should be, such as an older configuration."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.status is not None and evidence.status.degraded:
        yield Issue(
            "node.degraded",
            Severity.ERROR,
            "meshd runs, but not on what the configuration asks for",
            evidence.status.degraded,
            "meshd check && systemctl reload meshd",
        )
