"""What one node is made of, as measured: frozen facts, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Vendor(StrEnum):
    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    :ivar id: stable over reboots and reordering: NVML's ``GPU-<uuid>`` or ``MIG-<uuid>``, AMD's
        ``GPU-<unique_id>``, else ``pci-<address>``.
    :ivar free_bytes: what can be allocated now, not what the card has.
    :ivar unified: the device shares the system's RAM (an APU, Grace, Jetson); its memory must not
        be counted a second time.
    :ivar carveout_bytes: the part of a unified device's total that the firmware took from the
        system before Linux saw it; the rest of its memory is the system's.
    """

    id: str
    vendor: Vendor
    name: str
    pci_address: str
    total_bytes: int
    free_bytes: int
    unified: bool = False
    driver: str = ""
    carveout_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Cpu:
    name: str
    architecture: str
    physical_cores: int
    logical_cores: int


@dataclass(frozen=True, slots=True)
class Ram:
    """:ivar available_bytes: the kernel's MemAvailable, further limited by our own cgroup."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Hardware:
    hostname: str
    cpu: Cpu
    ram: Ram
    gpus: tuple[Gpu, ...] = ()
    problems: tuple[str, ...] = ()
