"""The doctor says when the kernel lets nobody ping."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshd import paths
from meshd.doctor.checks import ping_sockets
from meshd.doctor.evidence import Evidence, Kernel
from meshd.doctor.issue import Severity
from meshd.doctor.surroundings import read_kernel


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("1\t0\n", True),
        ("0\t2147483647\n", False),
        ("0\t0\n", False),
        ("garbage\n", False),
        ("", False),
        (None, False),
    ],
)
def test_an_empty_range_is_worth_a_note(text: str | None, forbidden: bool, tmp_path: Path) -> None:
    setting = tmp_path / "proc/sys/net/ipv4/ping_group_range"
    setting.parent.mkdir(parents=True)
    if text is not None:
        setting.write_text(text)
    evidence = Evidence(paths=paths.SYSTEM, kernel=read_kernel(tmp_path))
    found = [(issue.id, issue.severity) for issue in ping_sockets.check(evidence)]
    assert found == ([("ping.forbidden", Severity.NOTE)] if forbidden else [])


def test_nothing_is_said_where_nobody_knows() -> None:
    assert not list(ping_sockets.check(Evidence(paths=paths.SYSTEM, kernel=Kernel())))
