"""Nothing went wrong while GPUs were asked what they are."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity

_LOOK = "journalctl -k -b --grep 'NVRM|nvidia|amdgpu|i915|xe '"


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.observation is None:
        return
    for number, sentence in enumerate(evidence.observation.hardware.problems, start=1):
        # Some sentences end in the way out; it is shown as what mends it.
        way_out = sentence.rpartition(": ")[2]
        command = way_out.startswith(("apt ", "modprobe ", "reboot"))
        yield Issue(
            f"gpu.problem:{number}",
            Severity.WARNING,
            "a GPU cannot be used, or not all is known of it",
            (sentence,),
            way_out if command else _LOOK,
        )
