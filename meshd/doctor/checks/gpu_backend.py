"""Each GPU that may be used has a backend in the engine that can use it."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity
from meshd.errors import UserError
from meshd.node.inventory import Gpu, Vendor
from meshd.node.selection import select_gpus

_BACKENDS = {
    Vendor.NVIDIA: ("CUDA", "Vulkan"),
    Vendor.AMD: ("ROCm", "HIP", "Vulkan"),
    Vendor.INTEL: ("SYCL", "Vulkan"),
}
_DRIVERS = {
    Vendor.NVIDIA: "nvidia-vulkan-icd",
    Vendor.AMD: "mesa-vulkan-drivers",
    Vendor.INTEL: "mesa-vulkan-drivers",
}


def check(evidence: Evidence) -> Iterator[Issue]:
    observation = evidence.observation
    if observation is None or observation.engine is None:
        return
    there = observation.engine.backends
    for vendor, wanted in _BACKENDS.items():
        gpus = [gpu for gpu in _usable(evidence) if gpu.vendor is vendor]
        if gpus and not any(name in there for name in wanted):
            yield Issue(
                f"gpu.no-backend:{vendor}",
                Severity.WARNING,
                f"the engine cannot use the {vendor.upper()} GPU: it has no backend for it",
                (
                    *(f"{gpu.name} ({gpu.id})" for gpu in gpus),
                    f"backends: {', '.join(there) or 'none'}; one of {', '.join(wanted)} is needed",
                ),
                f"apt install libggml0-backend-vulkan {_DRIVERS[vendor]}",
            )


def _usable(evidence: Evidence) -> tuple[Gpu, ...]:
    assert evidence.observation is not None
    wanted = evidence.config.node.gpus if evidence.config else "auto"
    try:
        return select_gpus(evidence.observation.hardware, wanted)
    except UserError:
        return ()  # gpu_pinned says it
