"""The GPUs that the configuration pins are in the machine."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity
from meshd.errors import UserError
from meshd.node.selection import select_gpus


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.observation is None or evidence.config is None:
        return
    hardware = evidence.observation.hardware
    try:
        select_gpus(hardware, evidence.config.node.gpus)
    except UserError as error:
        there = tuple(f"{gpu.id}: {gpu.name}" for gpu in hardware.gpus)
        yield Issue(
            "gpu.pinned-missing",
            Severity.ERROR,
            "a pinned GPU is not there, so no GPU is used",
            (error.message, *there),
            f"edit node.gpus in {evidence.paths.config}, then: systemctl reload meshd",
        )
