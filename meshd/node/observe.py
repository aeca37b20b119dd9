"""One look at the machine."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from collections.abc import Collection
from pathlib import Path

from meshd.node.amd import read_amd
from meshd.node.drm_query import query
from meshd.node.intel import Query, read_intel
from meshd.node.inventory import Gpu, Hardware, Ram
from meshd.node.memory import read_ram
from meshd.node.nvidia import interpret
from meshd.node.nvml import NvmlReader
from meshd.node.pci import VENDOR_AMD, VENDOR_INTEL, VENDOR_NVIDIA, PciGpu, read_gpus
from meshd.node.processor import read_cpu

ROOT = Path("/")
NVML_TIMEOUT_S = 5.0

_READER = NvmlReader()


def observe_hardware(
    root: Path = ROOT,
    *,
    nvml: NvmlReader | None = None,
    nvml_timeout_s: float = NVML_TIMEOUT_S,
    engine_group: str | None = None,
    ask_intel: Query = query,
    hostname: str | None = None,
    architecture: str | None = None,
    allowed_cpus: Collection[int] | None = None,
) -> Hardware:
    """Measure this machine now. Blocks for milliseconds, at worst for ``nvml_timeout_s``.

    Whatever is wrong with a device is a sentence in ``problems``; nothing is raised.

    :param root: where proc, sys and dev are found; with another root than "/" nothing of the
        running machine is asked unless it is given.
    :param engine_group: the control group that engines run in (see `read_ram`).
    """
    ram = read_ram(root, engine_group=engine_group)
    pci = read_gpus(root)
    real = root == ROOT
    gpus, problems = _read_gpus(root, pci, ram, ask_intel)
    reader = nvml or (_READER if real else None)
    answers = reader.read(nvml_timeout_s) if reader else None
    cards = [device for device in pci if device.vendor == VENDOR_NVIDIA]
    if answers is not None:
        found, sentences = interpret(answers, ram)
        # A library without a driver and a card is no problem of anybody's.
        if cards or found or answers.devices:
            gpus = [*found, *gpus]
            problems = [*sentences, *problems]
    else:
        problems = [*(_no_nvml(device) for device in cards), *problems]
    if allowed_cpus is None and real:
        allowed_cpus = os.sched_getaffinity(0)
    return Hardware(
        hostname=hostname if hostname is not None else socket.gethostname(),
        cpu=read_cpu(root, architecture=architecture or platform.machine(), allowed=allowed_cpus),
        ram=ram,
        gpus=tuple(gpus),
        problems=tuple(problems),
    )


async def observe(*, engine_group: str | None = None) -> Hardware:
    """The same without blocking the event loop."""
    return await asyncio.to_thread(observe_hardware, engine_group=engine_group)


def _read_gpus(
    root: Path, devices: tuple[PciGpu, ...], ram: Ram, ask_intel: Query
) -> tuple[list[Gpu], list[str]]:
    gpus: list[Gpu] = []
    problems: list[str] = []
    sentences: tuple[str, ...]
    for device in devices:
        if device.vendor == VENDOR_AMD:
            gpu, problem = read_amd(root, device, ram)
            sentences = (problem,) if problem else ()
        elif device.vendor == VENDOR_INTEL:
            gpu, sentences = read_intel(root, device, ram, ask=ask_intel)
        else:
            continue
        gpus += [gpu] if gpu else []
        problems += sentences
    # Cards before the graphics in the processor, as llama.cpp orders them.
    return sorted(gpus, key=lambda gpu: gpu.unified), problems


def _no_nvml(device: PciGpu) -> str:
    if device.driver == "vfio-pci":
        return f"NVIDIA GPU at {device.address} is given to a virtual machine (vfio-pci)"
    if device.driver == "nvidia":
        return (
            f"NVIDIA GPU at {device.address} has its driver but NVML is missing: "
            "apt install libnvidia-ml1"
        )
    bound = f"driver {device.driver}" if device.driver else "no driver"
    return (
        f"NVIDIA GPU at {device.address} has {bound}: install NVIDIA's driver "
        "(nvidia-driver of Debian non-free, or NVIDIA's own packages) and reboot"
    )
