"""What NVML answered, and what it means. Pure: `nvml.py` does the asking."""

from __future__ import annotations

import re
from dataclasses import dataclass

from meshd.node.inventory import Gpu, Ram, Vendor
from meshd.node.pci import normalise_address

# Devices that have no memory but the system's: DGX Spark, N1 laptops, Jetson.
_INTEGRATED = re.compile(r"\b(GB10|N1X?|Orin|Thor|Xavier|Tegra|nvgpu)\b")

NOT_SUPPORTED = 3  # NVML_ERROR_NOT_SUPPORTED, nvml.h


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that NVML refused. :ivar code: nvmlReturn_t; ``text`` in NVML's words."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Memory:
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or one MIG instance, as NVML describes it.

    :ivar failure: set when the device could not even say who it is.
    :ivar mig_enabled: the device is cut up: only its instances can be used.
    """

    index: int
    uuid: str = ""
    name: str = ""
    bus_id: str = ""
    memory: Memory | Failure | None = None
    mig_enabled: bool = False
    instances: tuple[Device, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """One round of asking. :ivar failure: why there are no answers at all, in a sentence."""

    driver: str = ""
    devices: tuple[Device, ...] = ()
    failure: str = ""


def interpret(answers: Answers, ram: Ram) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """GPUs, and a sentence for everything that is wrong."""
    gpus: list[Gpu] = []
    problems: list[str] = [answers.failure] if answers.failure else []
    for device in answers.devices:
        if device.failure is not None:
            problems.append(
                f"NVIDIA GPU {device.index} cannot be used: {device.failure.text}; "
                "see dmesg for Xid messages"
            )
            continue
        if device.mig_enabled and not device.instances:
            problems.append(
                f"{_label(device)} is in MIG mode but has no instance: make one "
                "(nvidia-smi mig -cgi ... -C) or switch MIG off (nvidia-smi -mig 0)"
            )
        for part in device.instances if device.mig_enabled else (device,):
            gpu, problem = _gpu(part, device.bus_id, answers.driver, ram)
            gpus += [gpu] if gpu else []
            problems += [problem] if problem else []
    return tuple(gpus), tuple(problems)


def _gpu(device: Device, bus_id: str, driver: str, ram: Ram) -> tuple[Gpu | None, str]:
    memory = device.memory
    unified = bool(_INTEGRATED.search(device.name))
    if unified:
        # NVML says "Not Supported", zero, or (N1X) a small window; the truth is the system's.
        memory = Memory(ram.total_bytes, ram.available_bytes)
    if not isinstance(memory, Memory) or memory.total_bytes <= 0:
        return None, f"{_label(device)}: {_why_no_memory(memory)}"
    gpu = Gpu(
        id=device.uuid,
        vendor=Vendor.NVIDIA,
        name=device.name,
        pci_address=normalise_address(bus_id),
        total_bytes=memory.total_bytes,
        free_bytes=min(memory.free_bytes, memory.total_bytes),
        unified=unified,
        driver=f"nvidia {driver}".strip(),
    )
    return gpu, ""


def _why_no_memory(memory: Memory | Failure | None) -> str:
    if not isinstance(memory, Failure):
        return "NVML tells no memory"
    if memory.code == NOT_SUPPORTED:
        return "NVML does not tell its memory and it is no unified device that meshd knows"
    return f"its memory cannot be read: {memory.text}"


def _label(device: Device) -> str:
    name = device.name or f"NVIDIA GPU {device.index}"
    return f"{name} ({device.uuid})" if device.uuid else name
