"""System memory: what /proc/meminfo says, limited by the control groups above us.

Formats: proc_meminfo(5), Documentation/admin-guide/cgroup-v2.rst (memory controller) and
cgroup-v1/memory.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from meshd.node.inventory import Ram
from meshd.node.sysfs import parse_number, read_text

# v1 writes "no limit" as the highest page-aligned number; nothing real comes near it.
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """One control group. :ivar reclaimable_bytes: page cache that it gives up when it must."""

    limit_bytes: int
    used_bytes: int
    reclaimable_bytes: int = 0

    @property
    def available_bytes(self) -> int:
        return max(0, self.limit_bytes - max(0, self.used_bytes - self.reclaimable_bytes))


@dataclass(frozen=True, slots=True)
class OwnGroups:
    """Paths from /proc/self/cgroup, None where there is no such hierarchy."""

    unified: str | None
    memory_v1: str | None


def parse_meminfo(text: str) -> dict[str, int]:
    """Name to bytes. The unit kB of this file means 1024 bytes (proc_meminfo(5))."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        number = parse_number(fields[0]) if fields else None
        if number is not None:
            values[name.strip()] = number * 1024 if fields[1:] == ["kB"] else number
    return values


def parse_own_groups(text: str) -> OwnGroups:
    """Lines are ``id:controllers:path``; the unified hierarchy has id 0 and no controllers."""
    unified = memory_v1 = None
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        hierarchy, controllers, path = fields
        if hierarchy == "0" and not controllers:
            unified = path
        elif "memory" in controllers.split(","):
            memory_v1 = path
    return OwnGroups(unified, memory_v1)


def parse_stat(text: str | None, name: str) -> int:
    """One value of memory.stat, 0 where it is not there."""
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return parse_number(value.strip()) or 0
    return 0


def available(meminfo: dict[str, int], groups: tuple[GroupMemory, ...]) -> int:
    """Bytes that can be used now: the least of the machine's and of every group's."""
    machine = meminfo.get("MemAvailable")
    if machine is None:  # kernels before 3.14, and some containers' own /proc/meminfo
        machine = sum(meminfo.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
    return min([machine, *(group.available_bytes for group in groups)])


def read_ram(root: Path, *, engine_group: str | None = None) -> Ram:
    """Measure under ``root``, "/" on a real machine.

    :param engine_group: the control group that engines run in where it is not our own, for example
        ``/mesh.slice/mesh-engine.slice``: meshd.service's own limit says nothing about them.
    """
    meminfo = parse_meminfo(read_text(root / "proc/meminfo") or "")
    own = parse_own_groups(read_text(root / "proc/self/cgroup") or "")
    groups = _read_groups(root, own, engine_group)
    return Ram(meminfo.get("MemTotal", 0), available(meminfo, groups))


def _read_groups(root: Path, own: OwnGroups, engine_group: str | None) -> tuple[GroupMemory, ...]:
    mount = root / "sys/fs/cgroup"
    found: list[GroupMemory | None] = []
    unified = engine_group or own.unified
    if unified is not None:
        # On a hybrid machine (v1 with the unified tree beside it) there are no memory files there.
        found += [_read_v2(folder) for folder in _lineage(mount, unified)]
    if own.memory_v1 is not None and engine_group is None:
        found += [_read_v1(folder) for folder in _lineage(mount / "memory", own.memory_v1)]
    return tuple(group for group in found if group is not None)


def _lineage(mount: Path, path: str) -> list[Path]:
    """The group's folder and all above it: a limit holds for everything below."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..", ".")]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _read_v2(folder: Path) -> GroupMemory | None:
    limits = [parse_number(read_text(folder / name)) for name in ("memory.max", "memory.high")]
    limit = min((value for value in limits if value is not None), default=None)
    used = parse_number(read_text(folder / "memory.current"))
    if limit is None or used is None:  # "max" is no number: no limit
        return None
    return GroupMemory(limit, used, parse_stat(read_text(folder / "memory.stat"), "inactive_file"))


def _read_v1(folder: Path) -> GroupMemory | None:
    limit = parse_number(read_text(folder / "memory.limit_in_bytes"))
    used = parse_number(read_text(folder / "memory.usage_in_bytes"))
    if limit is None or used is None or limit >= _UNLIMITED_BYTES:
        return None
    return GroupMemory(
        limit, used, parse_stat(read_text(folder / "memory.stat"), "total_inactive_file")
    )
