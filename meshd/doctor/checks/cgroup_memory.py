"""Engines can be given memory limits: cgroup v2 with its memory controller."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.systemd is None:  # nobody sets limits here
        return
    controllers = evidence.kernel.controllers
    if controllers is None:
        yield Issue(
            "cgroup.version-1",
            Severity.WARNING,
            "control groups are version 1: memory limits of engines do not work",
            ("/sys/fs/cgroup/cgroup.controllers is not there",),
            "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line; reboot",
        )
    elif "memory" not in controllers:
        yield Issue(
            "cgroup.no-memory",
            Severity.WARNING,
            "the kernel's memory controller is off: memory limits of engines do not work",
            (f"/sys/fs/cgroup/cgroup.controllers: {' '.join(sorted(controllers))}",),
            "add cgroup_enable=memory to the kernel's command line; reboot",
        )
