"""The kernel's memory settings suit processes that map files of many gigabytes."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity

GIB = 1024**3
_STRICT = 2
_MUCH_SWAPPED_BYTES = 2 * GIB


def check(evidence: Evidence) -> Iterator[Issue]:
    kernel = evidence.kernel
    if kernel.overcommit == _STRICT:
        yield Issue(
            "memory.strict-overcommit",
            Severity.WARNING,
            "the kernel refuses to overcommit memory: GPU drivers and large models may not start",
            ("vm.overcommit_memory = 2",),
            "sysctl -w vm.overcommit_memory=0   # and in /etc/sysctl.d",
        )
    swapped = kernel.swap_total_bytes - kernel.swap_free_bytes
    if swapped >= _MUCH_SWAPPED_BYTES:
        yield Issue(
            "memory.swapped",
            Severity.WARNING,
            "much of this machine's memory is swapped out: engines that are swapped crawl",
            (f"{swapped / GIB:.1f} GiB of {kernel.swap_total_bytes / GIB:.1f} GiB swap in use",),
            "meshd status   # a smaller context, fewer slots or fewer models; see node.reserve.ram",
        )
