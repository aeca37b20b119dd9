"""meshd runs where it is installed as a service."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity

_MEANT = ("mesh.target", "meshd.service")


def check(evidence: Evidence) -> Iterator[Issue]:
    unit = evidence.unit("meshd.service")
    if unit is None or unit.load != "loaded" or evidence.status is not None:
        return
    if unit.active == "active":
        yield Issue(
            "node.no-answer",
            Severity.ERROR,
            "meshd.service is active but does not answer at its control socket",
            (f"{evidence.paths.control_socket}: no answer",),
            "journalctl -u meshd -b -n 50   # as root; then: systemctl restart meshd",
        )
    elif unit.active == "inactive":
        wanted = [name for name in _MEANT if _enabled(evidence, name)]
        yield Issue(
            "node.stopped",
            Severity.ERROR if wanted else Severity.NOTE,
            "meshd is not running",
            (f"meshd.service is {unit.active} ({unit.sub})", *(f"{n} is enabled" for n in wanted)),
            "systemctl enable --now mesh.target",
        )


def _enabled(evidence: Evidence, name: str) -> bool:
    unit = evidence.unit(name)
    return unit is not None and unit.enabled == "enabled"
