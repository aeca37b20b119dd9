"""Which ggml backend drives which GPU, and what the engine calls it. Pure.

Names as `llama-server --list-devices` prints them: the backend's name and a running number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from meshd.node.inventory import Gpu, Vendor

# The vendor's own first; Vulkan drives all of them.
_PREFERRED = {
    Vendor.NVIDIA: ("CUDA", "Vulkan"),
    Vendor.AMD: ("ROCm", "HIP", "Vulkan"),
    Vendor.INTEL: ("SYCL", "Vulkan"),
}
# What makes a backend see only the devices that we name, in the order that we name them.
_SELECTORS = {
    "CUDA": "CUDA_VISIBLE_DEVICES",
    "ROCm": "HIP_VISIBLE_DEVICES",
    "HIP": "HIP_VISIBLE_DEVICES",
    "Vulkan": "GGML_VK_VISIBLE_DEVICES",
    "SYCL": "ONEAPI_DEVICE_SELECTOR",
}


@dataclass(frozen=True, slots=True)
class EngineDevices:
    """:ivar names: for ``--device``, in the order asked; ``environment`` makes them so."""

    names: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]


def backend_for(vendor: Vendor, backends: Iterable[str]) -> str:
    """The backend to use for a vendor's GPU, "" when the engine has none for it."""
    there = frozenset(backends)
    return next((name for name in _PREFERRED[vendor] if name in there), "")


def engine_devices(
    wanted: Sequence[str], gpus: Sequence[Gpu], backends: Iterable[str]
) -> EngineDevices:
    """Names and environment for the GPUs `wanted` (stable ids) of all the node's `gpus`.

    CUDA is told UUIDs. The others number devices: cards before graphics in the processor, by PCI
    address, as their loaders enumerate them.

    :raises ValueError: for a GPU that is not there or that no backend drives.
    """
    there = frozenset(backends)
    by_id = {gpu.id: gpu for gpu in gpus}
    chosen: dict[str, list[str]] = {}
    names = []
    for name in wanted:
        gpu = by_id.get(name)
        backend = backend_for(gpu.vendor, there) if gpu else ""
        if gpu is None or not backend:
            raise ValueError(f"no backend of {sorted(there)} drives GPU {name}")
        selected = chosen.setdefault(backend, [])
        names.append(f"{'ROCm' if backend == 'HIP' else backend}{len(selected)}")
        selected.append(_selection(backend, gpu, gpus))
    environment = tuple(
        sorted((_SELECTORS[backend], _joined(backend, ids)) for backend, ids in chosen.items())
    )
    return EngineDevices(tuple(names), environment)


def _selection(backend: str, gpu: Gpu, gpus: Sequence[Gpu]) -> str:
    if backend == "CUDA":
        return gpu.id
    # Vulkan numbers every GPU of the machine, the vendors' own runtimes only their own.
    counted = gpus if backend == "Vulkan" else [g for g in gpus if g.vendor is gpu.vendor]
    ordered = sorted(counted, key=lambda g: (g.unified, g.pci_address))
    return str(ordered.index(gpu))


def _joined(backend: str, ids: Sequence[str]) -> str:
    text = ",".join(ids)
    return f"level_zero:{text}" if backend == "SYCL" else text
