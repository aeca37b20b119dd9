"""What a process and all that it started use, from /proc."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True, slots=True)
class Tree:
    """:ivar pid: None for no process, which costs nothing.

    :ivar children: whether what it started counts; not where that is the stub.
    """

    pid: int | None
    children: bool = True

    def cpu_s(self) -> float:
        """User and system time of all threads until now, in steps of 10 ms (proc_pid_stat(5))."""
        return sum(_cpu_s(pid) for pid in self.pids())

    def pss_bytes(self) -> int:
        """Memory, shared pages counted in shares (smaps_rollup)."""
        return sum(_pss_bytes(pid) for pid in self.pids())

    def pids(self) -> list[int]:
        found = [] if self.pid is None else [self.pid]
        # Grows while it is walked: children of children.
        for pid in found:
            if self.children:
                found.extend(_children(pid))
        return found


def machine_busy_s() -> tuple[float, float]:
    """CPU time that the whole machine has used and could have used until now."""
    numbers = [int(text) for text in (_PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    all_s = sum(numbers) * _TICK_S
    return all_s - (numbers[3] + numbers[4]) * _TICK_S, all_s


def _children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(*_GONE):
        for task in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(*_GONE):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(*_GONE):
        # The name, in brackets, may have spaces.
        after = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(after[11]) + int(after[12])) * _TICK_S
    return 0.0


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(*_GONE):
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
        found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0
