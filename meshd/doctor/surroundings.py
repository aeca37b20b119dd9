"""The machine around meshd: disks, folders, kernel settings."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from meshd.doctor.evidence import Disk, Folder, Kernel
from meshd.node.memory import parse_meminfo
from meshd.node.sysfs import read_number, read_text
from meshd.paths import Paths


def read_disks(paths: Paths, model_dirs: Iterable[str]) -> tuple[Disk, ...]:
    """One entry for each file system; what is not there yet counts with its parent.

    Read-only file systems, such as an image's /usr, are left out: they are always full.
    """
    found: dict[int, Disk] = {}
    wanted = [(paths.state, "state"), *((Path(folder), "models") for folder in model_dirs)]
    for folder, used_for in wanted:
        there = next((p for p in (folder, *folder.parents) if p.is_dir()), None)
        if there is None or (used_for == "models" and there != folder):
            continue
        try:
            device = there.stat().st_dev
            read_only = os.statvfs(there).f_flag & os.ST_RDONLY
            usage = shutil.disk_usage(there)
        except OSError:
            continue
        if device not in found and not read_only:
            found[device] = Disk(str(folder), used_for, usage.total, usage.free)
    return tuple(found.values())


def read_folders(paths: Paths) -> tuple[Folder, ...]:
    return tuple(_folder(path) for path in (paths.state, paths.run))


def read_kernel(root: Path = Path("/"), *, clock_synchronised: bool | None = None) -> Kernel:
    controllers = read_text(root / "sys/fs/cgroup/cgroup.controllers")
    meminfo = parse_meminfo(read_text(root / "proc/meminfo") or "")
    return Kernel(
        controllers=None if controllers is None else frozenset(controllers.split()),
        overcommit=read_number(root / "proc/sys/vm/overcommit_memory"),
        swap_total_bytes=meminfo.get("SwapTotal", 0),
        swap_free_bytes=meminfo.get("SwapFree", 0),
        clock_synchronised=clock_synchronised,
        ping_groups=read_text(root / "proc/sys/net/ipv4/ping_group_range"),
    )


def _folder(path: Path) -> Folder:
    try:
        status = path.stat()
    except OSError:
        return Folder(str(path))
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    return Folder(str(path), owner, stat.S_IMODE(status.st_mode))
