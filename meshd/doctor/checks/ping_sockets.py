"""Services may send pings (icmp(7)); the distance to other nodes is measured with them."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity


def check(evidence: Evidence) -> Iterator[Issue]:
    words = (evidence.kernel.ping_groups or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return
    first, last = map(int, words)
    if first > last:
        yield Issue(
            "ping.forbidden",
            Severity.NOTE,
            "pings are forbidden: only connections tell how far other nodes are",
            (f"net.ipv4.ping_group_range is {first} {last}, which is nobody",),
            "echo 'net.ipv4.ping_group_range = 0 2147483647' > /etc/sysctl.d/60-ping.conf"
            " && sysctl --system",
        )
