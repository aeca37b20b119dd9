"""Intel GPUs: cards (xe, i915) and the graphics in the processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from meshd.node.drm_query import LocalMemory, parse_i915, parse_xe, query
from meshd.node.inventory import Gpu, Ram, Vendor
from meshd.node.pci import PciGpu, read_device_name
from meshd.node.sysfs import read_number

Query = Callable[[Path, str], bytes | None]

# Intel's graphics in the processor have sat at this place since they exist.
_INTEGRATED_SLOT = ":00:02.0"


def read_intel(
    root: Path, pci: PciGpu, ram: Ram, *, ask: Query = query
) -> tuple[Gpu | None, tuple[str, ...]]:
    """The GPU (None where nothing can be known of it) and what is wrong with it, in sentences."""
    if pci.driver not in ("xe", "i915"):
        bound = f"driver {pci.driver}" if pci.driver else "no driver"
        return None, (f"Intel GPU at {pci.address} has {bound}: it needs xe or i915",)
    name = read_device_name(root, pci) or f"Intel GPU 8086:{pci.device:04x}"
    problems: list[str] = []
    memory, answered = _ask(root, pci, ask, problems)
    if memory is None and not answered:
        memory = _from_sysfs(pci)
    if memory is not None:
        if memory.used_bytes is None:
            problems.append(
                f"{name} at {pci.address}: free memory is not told to us (it takes CAP_PERFMON); "
                "all of it is taken for free"
            )
        free = max(0, memory.total_bytes - (memory.used_bytes or 0))
        return _gpu(pci, name, memory.total_bytes, free), tuple(problems)
    if answered or pci.address.endswith(_INTEGRATED_SLOT):
        return _gpu(pci, name, ram.total_bytes, ram.available_bytes, unified=True), ()
    problems.append(f"{name} at {pci.address}: the size of its memory cannot be read")
    return None, tuple(problems)


def _ask(
    root: Path, pci: PciGpu, ask: Query, problems: list[str]
) -> tuple[LocalMemory | None, bool]:
    """The driver's answer, and whether there was one."""
    if not pci.render_node:
        return None, False
    node = root / "dev/dri" / pci.render_node
    try:
        answer = ask(node, pci.driver)
    except OSError as error:
        if not pci.address.endswith(_INTEGRATED_SLOT):
            problems.append(f"/dev/dri/{pci.render_node}: {error.strerror or error}")
        return None, False
    if answer is None:
        return None, False
    return (parse_xe if pci.driver == "xe" else parse_i915)(answer), True


def _from_sysfs(pci: PciGpu) -> LocalMemory | None:
    """What some kernels publish: xe by tile, Intel's own i915 packages on the card's node."""
    tiles = [
        size
        for tile in range(4)
        if (size := read_number(pci.folder / f"tile{tile}/physical_vram_size_bytes"))
    ]
    if tiles:
        return LocalMemory(sum(tiles), None)
    if pci.card is None:
        return None
    total = read_number(pci.card / "lmem_total_bytes")
    free = read_number(pci.card / "lmem_avail_bytes")
    if not total:
        return None
    return LocalMemory(total, None if free is None else max(0, total - free))


def _gpu(pci: PciGpu, name: str, total: int, free: int, *, unified: bool = False) -> Gpu:
    return Gpu(
        id=f"pci-{pci.address}",
        vendor=Vendor.INTEL,
        name=name,
        pci_address=pci.address,
        total_bytes=total,
        free_bytes=free,
        unified=unified,
        driver=pci.driver,
    )
