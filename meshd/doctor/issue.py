"""What the doctor says: one issue, what shows it, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """ERROR: something that was asked for does not work. WARNING: it will not, or not well.
    NOTE: worth knowing.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong.

    :ivar id: stable, ``area.problem``; with a subject behind a colon where there can be several.
    :ivar evidence: what was seen, one fact a line.
    :ivar mend: the command (or the edit) that mends it.
    """

    id: str
    severity: Severity
    summary: str
    evidence: tuple[str, ...]
    mend: str


def in_order(issues: list[Issue]) -> tuple[Issue, ...]:
    """Errors first; otherwise as the checks found them."""
    rank = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}
    return tuple(sorted(issues, key=lambda issue: rank[issue.severity]))
