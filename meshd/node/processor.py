"""The processor: its name and how many cores are really there.

Formats: Documentation/admin-guide/cputopology.rst and the architectures' own /proc/cpuinfo.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from meshd.node.inventory import Cpu
from meshd.node.sysfs import read_text

_NAME_KEYS = ("model name", "Model Name", "cpu model", "uarch", "Processor", "cpu")


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's list format: ``0-3,8,10-11``. Malformed parts are left out."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        try:
            low, high = int(first), int(last or first)
        except ValueError:
            continue
        if 0 <= low <= high < 1 << 16:
            cpus.update(range(low, high + 1))
    return frozenset(cpus)


def parse_cpu_name(cpuinfo: str) -> str:
    """The first name in /proc/cpuinfo, "" where the architecture does not tell (most of Arm)."""
    names: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        names.setdefault(key.strip(), " ".join(value.split()))
    return next((names[key] for key in _NAME_KEYS if names.get(key)), "")


def count_cores(siblings: Collection[str]) -> int:
    """Physical cores: the threads of one core share one list, whatever the ids mean."""
    return len({parse_cpu_list(text) for text in siblings})


def read_cpu(root: Path, *, architecture: str, allowed: Collection[int] | None = None) -> Cpu:
    """Measure under ``root``.

    :param allowed: the CPUs that we may run on (sched_getaffinity(2), which knows of cpuset
        control groups); None for all that are online.
    """
    base = root / "sys/devices/system/cpu"
    online = parse_cpu_list(read_text(base / "online") or "")
    usable = sorted(online if allowed is None else online & set(allowed) or online)
    siblings = [
        text
        for cpu in usable
        if (
            text := read_text(base / f"cpu{cpu}/topology/core_cpus_list")
            or read_text(base / f"cpu{cpu}/topology/thread_siblings_list")
        )
    ]
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    logical = len(usable) or cpuinfo.count("processor\t:") or 1
    name = (
        parse_cpu_name(cpuinfo)
        or read_text(root / "sys/firmware/devicetree/base/model")
        or architecture
    )
    return Cpu(
        name=name,
        architecture=architecture,
        physical_cores=count_cores(siblings) or logical,
        logical_cores=logical,
    )


def read_last_cache_bytes(root: Path) -> int:
    """Size of the largest cache of the first processor, 0 where the kernel does not say."""
    sizes = (
        parse_cache_size(read_text(path))
        for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    )
    return max(sizes, default=0)


def parse_cache_size(text: str | None) -> int:
    """The kernel writes ``491520K``; see drivers/base/cacheinfo.c.

    >>> parse_cache_size("491520K")
    503316480
    """
    number = (text or "").removesuffix("K")
    return int(number) * 1024 if number.isascii() and number.isdigit() else 0
