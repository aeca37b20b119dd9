"""The configuration can be read and means something."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.config.findings import Severity as FindingSeverity
from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity

_MOST = 5


def check(evidence: Evidence) -> Iterator[Issue]:
    errors = [one for one in evidence.findings if one.severity is FindingSeverity.ERROR]
    if evidence.config is None:
        shown = tuple(line for one in errors[:_MOST] for line in str(one).splitlines())
        more = len(errors) - _MOST
        yield Issue(
            "config.invalid",
            Severity.ERROR,
            f"{evidence.paths.config} cannot be used",
            (*shown, *((f"and {more} more",) if more > 0 else ())),
            f"edit {evidence.paths.config}, then: meshd check && systemctl reload meshd",
        )
    elif not evidence.config.models:
        yield Issue(
            "config.no-models",
            Severity.NOTE,
            "the configuration names no model, so nothing is served",
            (f"{evidence.paths.config}: models is empty",),
            f"edit {evidence.paths.config}, then: systemctl reload meshd",
        )
