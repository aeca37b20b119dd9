"""A node's GPUs as an engine is told of them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from meshd.engine.backends import engine_devices
from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.node.inventory import Hardware, Vendor
from meshd.units.spec import GpuAccess


def gpu_devices(
    gpus: Sequence[str], hardware: Hardware, build: EngineBuild
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The engine's names for GPUs (stable ids), and the environment that makes them so.

    :raises UserError: one is not there, or the build has no backend for it.
    """
    try:
        found = engine_devices(gpus, hardware.gpus, build.backends)
    except ValueError as error:
        raise UserError(str(error), hint="meshd doctor") from error
    return found.names, found.environment


def gpu_access(gpus: Collection[str], hardware: Hardware) -> GpuAccess:
    """The device nodes that these GPUs need."""
    vendors = {gpu.vendor for gpu in hardware.gpus if gpu.id in gpus}
    if not vendors:
        return GpuAccess.NONE
    return GpuAccess.NVIDIA if vendors == {Vendor.NVIDIA} else GpuAccess.DRI
