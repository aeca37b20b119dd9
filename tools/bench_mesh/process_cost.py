"""What a process uses, from /proc."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """:ivar pss_bytes: shared pages counted in shares."""

    rss_bytes: int
    pss_bytes: int


def memory(pid: int) -> Memory:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {
        name: int(kib) * 1024 for name, kib in re.findall(r"^(Rss|Pss): +(\d+) kB", text, re.M)
    }
    return Memory(found["Rss"], found["Pss"])


def cpu_s(pid: int) -> float:
    """Seconds that all threads ran until now.

    From the scheduler's own count, in nanoseconds; /proc/PID/stat counts in hundredths of a second,
    which is more than an idle process uses in a minute.
    """
    ran_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            ran_ns += int((task / "schedstat").read_text().split()[0])
    return ran_ns / 1e9
