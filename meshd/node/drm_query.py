"""Memory of Intel GPUs by the drivers' own query ioctls: sysfs does not have it.

Both queries are allowed on a render node without privileges. How much of the memory is in use is
told only with CAP_PERFMON; without it, all looks free.
ABI: include/uapi/drm/xe_drm.h (DRM_XE_DEVICE_QUERY_MEM_REGIONS) and i915_drm.h
(DRM_I915_QUERY_MEMORY_REGIONS).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_DEVICE_LOCAL = 1  # DRM_XE_MEM_REGION_CLASS_VRAM and I915_MEMORY_CLASS_DEVICE

_XE_QUERY = struct.Struct("=QIIQ2Q")  # extensions, query, size, data, reserved
_XE_MEM_REGIONS = 1
_XE_HEADER = struct.Struct("=II")  # count, pad
_XE_REGION = struct.Struct("=HHIQQQQ6Q")  # class, instance, page, total, used, cpu_*, reserved

_I915_QUERY = struct.Struct("=IIQ")  # count, flags, items
_I915_ITEM = struct.Struct("=QiIQ")  # query, length, flags, data
_I915_MEMORY_REGIONS = 4
_I915_HEADER = struct.Struct("=I3I")  # count, reserved
_I915_REGION = struct.Struct("=HHIQQ8Q")  # class, instance, reserved, probed, unallocated, extra

_MAX_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LocalMemory:
    """Memory on the card, bytes. :ivar used_bytes: None where we may not know."""

    total_bytes: int
    used_bytes: int | None


def drm_iowr(number: int, size: int) -> int:
    """An ioctl's number: direction read and write, type ``d`` (asm-generic/ioctl.h)."""
    return (3 << 30) | (size << 16) | (ord("d") << 8) | number


XE_DEVICE_QUERY = drm_iowr(0x40, _XE_QUERY.size)
I915_QUERY = drm_iowr(0x40 + 0x39, _I915_QUERY.size)


def parse_xe(answer: bytes) -> LocalMemory | None:
    """``struct drm_xe_query_mem_regions``; None without memory of its own (integrated)."""
    regions = _regions(answer, _XE_HEADER, _XE_REGION)
    local = [(total, used) for kind, _, _, total, used, *_ in regions if kind == _DEVICE_LOCAL]
    if not local:
        return None
    used_bytes = sum(used for _, used in local)
    # The driver itself always uses some, so nothing used means nothing told.
    return LocalMemory(sum(total for total, _ in local), used_bytes or None)


def parse_i915(answer: bytes) -> LocalMemory | None:
    """``struct drm_i915_query_memory_regions``; None without memory of its own."""
    regions = _regions(answer, _I915_HEADER, _I915_REGION)
    local = [(probed, free) for kind, _, _, probed, free, *_ in regions if kind == _DEVICE_LOCAL]
    if not local:
        return None
    total_bytes = sum(probed for probed, _ in local)
    used_bytes = total_bytes - sum(min(free, probed) for probed, free in local)
    return LocalMemory(total_bytes, used_bytes or None)


def query(node: Path, driver: str) -> bytes | None:
    """Ask the driver behind a render node. Returns its raw answer.

    :raises OSError: the node cannot be opened (often: not in group render) or does not answer.
    """
    ask = {"xe": _ask_xe, "i915": _ask_i915}.get(driver)
    if ask is None:
        return None
    descriptor = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    try:
        return ask(descriptor)
    finally:
        os.close(descriptor)


def _ask_xe(descriptor: int) -> bytes:
    request = bytearray(_XE_QUERY.pack(0, _XE_MEM_REGIONS, 0, 0, 0, 0))
    fcntl.ioctl(descriptor, XE_DEVICE_QUERY, request, True)
    size = _bounded(_XE_QUERY.unpack(request)[2])
    answer = ctypes.create_string_buffer(size)
    request[:] = _XE_QUERY.pack(0, _XE_MEM_REGIONS, size, ctypes.addressof(answer), 0, 0)
    fcntl.ioctl(descriptor, XE_DEVICE_QUERY, request, True)
    return answer.raw


def _ask_i915(descriptor: int) -> bytes:
    item = ctypes.create_string_buffer(
        _I915_ITEM.pack(_I915_MEMORY_REGIONS, 0, 0, 0), _I915_ITEM.size
    )
    request = bytearray(_I915_QUERY.pack(1, 0, ctypes.addressof(item)))
    fcntl.ioctl(descriptor, I915_QUERY, request, True)
    size = _bounded(_I915_ITEM.unpack(item.raw)[1])
    answer = ctypes.create_string_buffer(size)
    item.raw = _I915_ITEM.pack(_I915_MEMORY_REGIONS, size, 0, ctypes.addressof(answer))
    fcntl.ioctl(descriptor, I915_QUERY, request, True)
    return answer.raw


def _bounded(size: int) -> int:
    if not 0 < size <= _MAX_ANSWER_BYTES:
        raise OSError(f"the driver wants {size} bytes for its memory regions")
    return size


def _regions(answer: bytes, header: struct.Struct, region: struct.Struct) -> list[tuple[int, ...]]:
    if len(answer) < header.size:
        return []
    count = min(header.unpack_from(answer)[0], (len(answer) - header.size) // region.size)
    return [region.unpack_from(answer, header.size + i * region.size) for i in range(count)]
