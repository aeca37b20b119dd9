"""What memory a node has left for more models, device by device."""

from __future__ import annotations

from collections.abc import Iterable

from meshd.mesh.record import DeviceRecord, MemoryUse
from meshd.planner.layout import RAM


class Room:
    """Memory that the mesh's engines may still use on one node."""

    __slots__ = ("_left",)

    def __init__(self, devices: Iterable[DeviceRecord]) -> None:
        self._left = {device.id: device.plannable_bytes for device in devices}

    def fit(self, memory: tuple[MemoryUse, ...]) -> tuple[MemoryUse, ...] | None:
        """The same memory on devices that have it, or None.

        What lies on one GPU may lie on any of the node's; what lies on several stays where it is.
        """
        left = self._left
        gpus = [use for use in memory if use.device != RAM]
        if all(use.size_bytes <= left.get(use.device, 0) for use in memory):
            return memory
        if len(gpus) != 1:
            return None
        rest = tuple(use for use in memory if use.device == RAM)
        if any(use.size_bytes > left.get(RAM, 0) for use in rest):
            return None
        size_bytes = gpus[0].size_bytes
        # The tightest fit leaves the largest hole to the others.
        fitting = [
            (room, device) for device, room in left.items() if device != RAM and room >= size_bytes
        ]
        if not fitting:
            return None
        return (MemoryUse(min(fitting)[1], size_bytes), *rest)

    def holds(self, memory: tuple[MemoryUse, ...]) -> bool:
        """Whether it is there on just these devices."""
        return all(use.size_bytes <= self._left.get(use.device, 0) for use in memory)

    def take(self, memory: tuple[MemoryUse, ...]) -> None:
        for use in memory:
            self._left[use.device] = self._left.get(use.device, 0) - use.size_bytes

    def give(self, memory: tuple[MemoryUse, ...]) -> None:
        for use in memory:
            self._left[use.device] = self._left.get(use.device, 0) + use.size_bytes
