"""AMD GPUs through amdgpu's sysfs attributes.

Formats: Documentation/gpu/amdgpu/driver-misc.rst (mem_info_*, unique_id) and the kernel's
kgd_pp_interface.h (the header of gpu_metrics).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshd.node.inventory import Gpu, Ram, Vendor
from meshd.node.pci import PciGpu, read_device_name
from meshd.node.sysfs import read_bytes, read_number, read_text

_APU_METRICS = (2, 3)


@dataclass(frozen=True, slots=True)
class AmdMemory:
    """mem_info_*: bytes. GTT is system memory that the device may map."""

    vram_total: int
    vram_used: int
    gtt_total: int = 0
    gtt_used: int = 0


def is_apu(metrics: bytes | None) -> bool:
    """Whether the GPU sits in the processor and uses its memory.

    gpu_metrics begins with its size (u16), format revision (u8) and content revision (u8); the
    kernel fills format 1 for cards and 2 or 3 for APUs. Devices that have no metrics (cards before
    Vega 12, APUs before Renoir) are taken for cards: then only their own memory is counted.
    """
    return metrics is not None and len(metrics) >= 4 and metrics[2] in _APU_METRICS


def stable_id(unique_id: str | None, address: str) -> str:
    """``GPU-<unique_id>`` as ROCm writes it; many APUs and older cards have none, or zero."""
    text = (unique_id or "").lower().removeprefix("0x")
    try:
        known = int(text, 16) != 0
    except ValueError:
        known = False
    return f"GPU-{text}" if known else f"pci-{address}"


def shared_memory(memory: AmdMemory, ram: Ram) -> tuple[int, int, int]:
    """An APU's total, free and carved-out bytes.

    The carve-out is memory that the firmware took from the system before Linux saw it; the rest is
    the system's own, so no more of it is free than the system has available.
    """
    free_own = max(0, memory.vram_total - memory.vram_used)
    free_shared = max(0, memory.gtt_total - memory.gtt_used)
    total = memory.vram_total + memory.gtt_total
    return total, free_own + min(free_shared, ram.available_bytes), memory.vram_total


def read_amd(root: Path, pci: PciGpu, ram: Ram) -> tuple[Gpu | None, str]:
    """The GPU, or None and a sentence that says why not."""
    total = read_number(pci.folder / "mem_info_vram_total")
    if total is None:
        return None, _silent(pci)
    memory = AmdMemory(
        vram_total=total,
        vram_used=read_number(pci.folder / "mem_info_vram_used") or 0,
        gtt_total=read_number(pci.folder / "mem_info_gtt_total") or 0,
        gtt_used=read_number(pci.folder / "mem_info_gtt_used") or 0,
    )
    unified = is_apu(read_bytes(pci.folder / "gpu_metrics", max_bytes=4))
    carveout = 0
    # The driver's count of used memory has been seen above its total: never below nothing.
    free = max(0, memory.vram_total - memory.vram_used)
    if unified:
        total, free, carveout = shared_memory(memory, ram)
    name = read_text(pci.folder / "product_name") or read_device_name(root, pci)
    gpu = Gpu(
        id=stable_id(read_text(pci.folder / "unique_id"), pci.address),
        vendor=Vendor.AMD,
        name=name or f"AMD GPU 1002:{pci.device:04x}",
        pci_address=pci.address,
        total_bytes=total,
        free_bytes=free,
        unified=unified,
        driver=pci.driver,
        carveout_bytes=carveout,
    )
    return gpu, ""


def _silent(pci: PciGpu) -> str:
    if pci.driver == "amdgpu":
        return f"AMD GPU at {pci.address}: amdgpu does not tell its memory; see dmesg"
    bound = f"driver {pci.driver}" if pci.driver else "no driver"
    return f"AMD GPU at {pci.address} has {bound}: it needs amdgpu (package firmware-amd-graphics)"
