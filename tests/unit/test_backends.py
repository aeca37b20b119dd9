from __future__ import annotations

import pytest

from meshd.engine.backends import backend_for, engine_devices
from meshd.node.inventory import Gpu, Vendor


def gpu(name: str, vendor: Vendor, address: str, *, unified: bool = False) -> Gpu:
    return Gpu(name, vendor, name, address, 1, 1, unified)


NVIDIA_1 = gpu("GPU-aaa", Vendor.NVIDIA, "0000:01:00.0")
NVIDIA_2 = gpu("GPU-bbb", Vendor.NVIDIA, "0000:02:00.0")
RADEON = gpu("pci-0000:03:00.0", Vendor.AMD, "0000:03:00.0")
APU = gpu("pci-0000:00:02.0", Vendor.AMD, "0000:00:02.0", unified=True)


def test_a_vendors_own_backend_comes_before_vulkan() -> None:
    assert backend_for(Vendor.NVIDIA, ("CPU", "Vulkan", "CUDA")) == "CUDA"
    assert backend_for(Vendor.NVIDIA, ("CPU", "Vulkan")) == "Vulkan"
    assert backend_for(Vendor.AMD, ("CPU", "CUDA")) == ""


def test_cuda_is_told_uuids_in_the_order_asked() -> None:
    found = engine_devices(["GPU-bbb", "GPU-aaa"], [NVIDIA_1, NVIDIA_2], ["CUDA"])
    assert found.names == ("CUDA0", "CUDA1")
    assert found.environment == (("CUDA_VISIBLE_DEVICES", "GPU-bbb,GPU-aaa"),)


def test_vulkan_counts_every_card_and_the_processors_graphics_last() -> None:
    found = engine_devices(["pci-0000:03:00.0"], [APU, NVIDIA_1, RADEON], ["Vulkan"])
    assert found.names == ("Vulkan0",)
    assert found.environment == (("GGML_VK_VISIBLE_DEVICES", "1"),)


def test_a_vendors_own_runtime_counts_only_its_cards() -> None:
    found = engine_devices(["pci-0000:03:00.0"], [APU, NVIDIA_1, RADEON], ["ROCm"])
    assert found.environment == (("HIP_VISIBLE_DEVICES", "0"),)


def test_vendors_can_be_mixed() -> None:
    found = engine_devices(["GPU-aaa", "pci-0000:03:00.0"], [NVIDIA_1, RADEON], ["CUDA", "ROCm"])
    assert found.names == ("CUDA0", "ROCm0")
    assert dict(found.environment) == {
        "CUDA_VISIBLE_DEVICES": "GPU-aaa",
        "HIP_VISIBLE_DEVICES": "0",
    }


@pytest.mark.parametrize(("wanted", "backends"), [("GPU-zzz", ["CUDA"]), ("GPU-aaa", ["ROCm"])])
def test_what_no_backend_drives_is_an_error(wanted: str, backends: list[str]) -> None:
    with pytest.raises(ValueError, match=wanted):
        engine_devices([wanted], [NVIDIA_1], backends)


def test_nothing_wanted_is_nothing_said() -> None:
    assert engine_devices([], [NVIDIA_1], ["CUDA"]).names == ()
