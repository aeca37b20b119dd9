"""How much of a disk the tensor cache may take, and what goes when it needs room. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system. :ivar free_bytes: that we may still write."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Quota:
    """:ivar share: of the file system, at most. :ivar keep_free: of it, never taken."""

    share: float = 0.2
    keep_free: float = 0.05

    def allowed_bytes(self, disk: Disk, held_bytes: int) -> int:
        """What the cache may hold in all, never less than 0."""
        room = held_bytes + disk.free_bytes - int(disk.total_bytes * self.keep_free)
        return max(0, min(int(disk.total_bytes * self.share), room))


@dataclass(frozen=True, slots=True)
class Held:
    """One file of the cache. :ivar used_s: Unix time at which it was last needed."""

    cache_name: str
    size_bytes: int
    used_s: int


def evictions(
    held: Iterable[Held], needed_bytes: int, allowed_bytes: int, keep: Collection[str]
) -> tuple[str, ...] | None:
    """The files to remove, least recently used first, so that `needed_bytes` more are allowed.

    :param keep: names of files that stay whatever happens.
    :returns: None where even removing all others would not do.
    """
    files = sorted(held, key=lambda file: (file.used_s, file.cache_name))
    over = sum(file.size_bytes for file in files) + needed_bytes - allowed_bytes
    gone = []
    for file in files:
        if over <= 0:
            break
        if file.cache_name not in keep:
            gone.append(file.cache_name)
            over -= file.size_bytes
    return tuple(gone) if over <= 0 else None
