"""How much of this machine's processors is in use. Format: /proc/stat in proc_stat(5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshd.node.sysfs import read_text


@dataclass(frozen=True, slots=True)
class Ticks:
    """Of all processors together, since the machine started."""

    busy: int
    idle: int


def parse_stat(text: str) -> Ticks | None:
    """None where there is no such line."""
    fields = text.partition("\n")[0].split()
    if len(fields) < 5 or fields[0] != "cpu" or not all(map(str.isdigit, fields[1:])):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests' are among the user's.
    numbers = [int(field) for field in fields[1:9]]
    idle = sum(numbers[3:5])
    return Ticks(sum(numbers) - idle, idle)


def read_ticks(root: Path = Path("/")) -> Ticks | None:
    return parse_stat(read_text(root / "proc/stat") or "")


def busy_share(before: Ticks | None, after: Ticks | None) -> float:
    """0 to 1 between two readings; 0 where nothing is known."""
    if before is None or after is None:
        return 0.0
    busy, idle = after.busy - before.busy, after.idle - before.idle
    return busy / (busy + idle) if busy >= 0 and busy + idle > 0 else 0.0
