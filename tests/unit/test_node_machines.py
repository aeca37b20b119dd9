"""Whole machines, replayed from recordings of sysfs, NVML and the DRM drivers."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from meshd.errors import UserError
from meshd.node.inventory import Hardware, Ram, Vendor
from meshd.node.nvidia import interpret
from meshd.node.nvml import NvmlReader
from meshd.node.observe import observe, observe_hardware
from meshd.node.selection import select_gpus

MACHINES = Path(__file__).parent / "node" / "machines"
MIB = 1024 * 1024
GIB = 1024 * MIB


class ReplayNvml:
    """Answers pynvml's calls from a recording and raises its real exceptions."""

    def __init__(self, recording: dict[str, Any]) -> None:
        self.recording = recording
        self.sessions = 0
        self.open = False

    def nvmlInit(self) -> None:  # noqa: N802
        self._fail(self.recording.get("init_error"))
        self.sessions += 1
        self.open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._fail(None if self.open else pynvml.NVML_ERROR_UNINITIALIZED)
        return len(self.recording["devices"])

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return self.recording["driver"]

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        device = self.recording["devices"][index]
        self._fail(device.get("handle_error"))
        return device

    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:  # noqa: N802
        return SimpleNamespace(busId=handle["busId"].encode())

    def nvmlDeviceGetUUID(self, handle: Any) -> str:  # noqa: N802
        return handle["uuid"]

    def nvmlDeviceGetName(self, handle: Any) -> str:  # noqa: N802
        return handle["name"]

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        self._fail(handle.get("memory_error"))
        return SimpleNamespace(total=handle["total"], free=handle["free"])

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:  # noqa: N802
        self._fail(None if "mig" in handle else pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [handle["mig"], handle["mig"]]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:  # noqa: N802
        return handle["max_mig"]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:  # noqa: N802
        instance = handle["instances"].get(str(index))
        self._fail(pynvml.NVML_ERROR_NOT_FOUND if instance is None else None)
        return instance

    @staticmethod
    def _fail(code: int | None) -> None:
        if code is not None:
            raise pynvml.NVMLError(code)


def load(name: str) -> dict[str, Any]:
    return json.loads((MACHINES / f"{name}.json").read_text())


def build(recording: dict[str, Any], root: Path) -> Path:
    for name, text in recording["files"].items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name, content in recording.get("hex", {}).items():
        (root / name.lstrip("/")).write_bytes(bytes.fromhex(content))
    return root


def measure(recording: dict[str, Any], root: Path) -> Hardware:
    build(recording, root)

    def ask_intel(node: Path, driver: str) -> bytes | None:
        assert driver in ("xe", "i915")
        return bytes.fromhex(recording["intel"][node.name])

    nvml = NvmlReader(ReplayNvml(recording["nvml"])) if "nvml" in recording else None
    return observe_hardware(
        root,
        nvml=nvml,
        ask_intel=ask_intel,
        hostname="box",
        architecture=recording["architecture"],
    )


@pytest.fixture
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Hardware:
    return measure(load(request.param), tmp_path)


def replay(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("machine", [name], indirect=True, ids=[name])


@replay("two-rtx-3090")
def test_two_cards_have_their_own_free_memory(machine: Hardware) -> None:
    first, second = machine.gpus
    assert first.id == "GPU-4fb6ac9a-29e1-b611-4af7-b61a99e3b92d"
    assert [gpu.pci_address for gpu in machine.gpus] == ["0000:0a:00.0", "0000:0b:00.0"]
    assert (first.total_bytes, first.free_bytes) == (24576 * MIB, 2633 * MIB)
    assert second.free_bytes == 1743 * MIB
    assert {gpu.driver for gpu in machine.gpus} == {"nvidia 610.57.04"}
    assert (machine.cpu.physical_cores, machine.cpu.logical_cores) == (16, 32)
    assert machine.problems == ()


@replay("rtx-4090-and-igpu")
def test_a_card_comes_before_the_graphics_in_the_processor(machine: Hardware) -> None:
    card, integrated = machine.gpus
    assert (card.vendor, card.unified) == (Vendor.NVIDIA, False)
    assert (integrated.vendor, integrated.name, integrated.unified) == (Vendor.AMD, "Raphael", True)
    assert integrated.carveout_bytes == 512 * MIB
    assert select_gpus(machine, "auto") == (card,)
    assert select_gpus(machine, ("pci-0000:0f:00.0", card.id)) == (integrated, card)


@replay("h100-mig")
def test_mig_instances_stand_for_the_card(machine: Hardware) -> None:
    assert [gpu.id[:12] for gpu in machine.gpus] == ["MIG-c7885320", "MIG-b4b2228d"]
    assert [gpu.free_bytes for gpu in machine.gpus] == [40410 * MIB, 9831 * MIB]
    assert {gpu.pci_address for gpu in machine.gpus} == {"0000:4f:00.0"}
    assert machine.problems == ()  # the parent's refusal does not matter


def test_mig_without_instances_is_a_problem(tmp_path: Path) -> None:
    recording = load("h100-mig")
    recording["nvml"]["devices"][0]["instances"] = {}
    hardware = measure(recording, tmp_path)
    assert hardware.gpus == ()
    assert "MIG mode but has no instance" in hardware.problems[0]


@replay("dgx-spark")
def test_a_gpu_without_memory_of_its_own_has_the_systems(machine: Hardware) -> None:
    (gpu,) = machine.gpus
    assert gpu.unified
    assert gpu.total_bytes == 127600748 * 1024
    assert gpu.free_bytes == 118566368 * 1024
    assert gpu.pci_address == "000f:01:00.0"
    assert machine.cpu.name == "NVIDIA DGX Spark"
    assert machine.cpu.physical_cores == 20


def test_a_card_that_does_not_tell_its_memory_is_not_used(tmp_path: Path) -> None:
    recording = load("two-rtx-3090")
    recording["nvml"]["devices"][1]["memory_error"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    hardware = measure(recording, tmp_path)
    assert len(hardware.gpus) == 1
    assert "no unified device that meshd knows" in hardware.problems[0]


@replay("radeon-rx-7900-xtx")
def test_a_radeon_card(machine: Hardware) -> None:
    (gpu,) = machine.gpus
    assert gpu.id == "GPU-398a3f843a146602"  # as ROCm names it
    assert gpu.name == "Radeon RX 7900 XT/7900 XTX/7900 GRE/7900M"
    assert gpu.total_bytes == 25753026560
    assert gpu.free_bytes == 25753026560 - 1234567168
    assert not gpu.unified


@replay("radeon-rx-6900-xt")
def test_a_radeon_without_names_is_named_by_its_ids(machine: Hardware) -> None:
    (gpu,) = machine.gpus
    assert (gpu.id, gpu.name) == ("GPU-946d7e1ef9b172dd", "AMD GPU 1002:73bf")
    assert gpu.free_bytes == 17163091968 - 668274688


@replay("radeon-rx-580")
def test_an_old_radeon_is_no_apu_though_its_memory_vendor_is_unknown(machine: Hardware) -> None:
    (gpu,) = machine.gpus
    assert (gpu.id, gpu.unified) == ("pci-0000:09:00.0", False)
    assert gpu.total_bytes == 4 * GIB


@replay("strix-halo")
def test_an_apu_has_its_carveout_and_what_it_may_map(machine: Hardware) -> None:
    (gpu,) = machine.gpus
    assert gpu.unified
    assert gpu.total_bytes == 100 * GIB
    assert gpu.carveout_bytes == 4 * GIB
    own = 4294967296 - 268435456
    assert gpu.free_bytes == own + (103079215104 - 1073741824)
    assert gpu.name.endswith("Radeon 8060S Graphics")


@replay("ryzen-phoenix-laptop")
def test_an_apu_cannot_have_more_than_the_system_has_left(machine: Hardware) -> None:
    (gpu,) = machine.gpus
    own = 4294967296 - 1272893440
    assert machine.ram.available_bytes == 20480000 * 1024
    assert gpu.free_bytes == own + machine.ram.available_bytes


@replay("arc-b580")
def test_an_arc_card_on_xe(machine: Hardware) -> None:
    (gpu,) = machine.gpus
    assert (gpu.id, gpu.name, gpu.driver) == ("pci-0000:0b:00.0", "Arc B580", "xe")
    assert gpu.total_bytes == 12809404416
    assert gpu.free_bytes == 12809404416 - 402653184
    assert machine.problems == ()


@replay("arc-a380")
def test_an_arc_card_that_does_not_tell_its_free_memory(machine: Hardware) -> None:
    (gpu,) = machine.gpus
    assert gpu.total_bytes == gpu.free_bytes == 6375342080
    assert "CAP_PERFMON" in machine.problems[0]


def test_an_arc_card_that_may_not_be_asked(tmp_path: Path) -> None:
    root = build(load("arc-b580"), tmp_path)

    def refused(node: Path, driver: str) -> bytes | None:
        raise PermissionError(13, "Permission denied", str(node))

    hardware = observe_hardware(root, ask_intel=refused, architecture="x86_64")
    assert hardware.gpus == ()
    assert hardware.problems == (
        "/dev/dri/renderD128: Permission denied",
        "Arc B580 at 0000:0b:00.0: the size of its memory cannot be read",
    )
    # Some kernels publish it all the same.
    folder = root / "sys/bus/pci/devices/0000:0b:00.0/tile0"
    folder.mkdir()
    (folder / "physical_vram_size_bytes").write_text("12884901888\n")
    (gpu,) = observe_hardware(root, ask_intel=refused, architecture="x86_64").gpus
    assert gpu.total_bytes == 12 * GIB


@replay("comet-lake-laptop")
def test_intel_graphics_in_the_processor(machine: Hardware) -> None:
    (gpu,) = machine.gpus
    assert gpu.unified
    assert gpu.total_bytes == machine.ram.total_bytes == 16102076 * 1024
    assert machine.problems == ()


@replay("vm-without-gpu")
def test_a_machine_without_a_gpu_is_fine(machine: Hardware) -> None:
    assert machine.gpus == ()
    assert machine.problems == ()
    assert machine.cpu.physical_cores == 2
    assert machine.ram.available_bytes == 24030536 * 1024
    assert select_gpus(machine, "auto") == ()


@replay("two-rtx-3090")
def test_a_pinned_gpu_that_is_missing_fails_and_lists_what_there_is(machine: Hardware) -> None:
    with pytest.raises(UserError) as caught:
        select_gpus(machine, ("GPU-dead", machine.gpus[0].id))
    assert "GPU-dead is not in this machine" in caught.value.message
    assert machine.gpus[1].id in caught.value.message
    assert "NVIDIA GeForce RTX 3090" in caught.value.message
    pinned = select_gpus(machine, (machine.gpus[1].id.upper(),))
    assert pinned == (machine.gpus[1],)


def test_a_pinned_gpu_on_a_machine_without_any(tmp_path: Path) -> None:
    hardware = measure(load("vm-without-gpu"), tmp_path)
    with pytest.raises(UserError, match="which has no GPU"):
        select_gpus(hardware, ("GPU-dead",))


def test_an_nvidia_card_without_its_driver(tmp_path: Path) -> None:
    recording = load("two-rtx-3090")
    del recording["nvml"]
    base = "/sys/bus/pci/devices/0000:0a:00.0/uevent"
    recording["files"][base] = recording["files"][base].replace("nvidia", "nouveau")
    hardware = measure(recording, tmp_path)
    assert hardware.gpus == ()
    assert "0000:0a:00.0 has driver nouveau: install NVIDIA's driver" in hardware.problems[0]
    assert "0000:0b:00.0 has its driver but NVML is missing" in hardware.problems[1]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "the NVIDIA driver is not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "different versions"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no permission"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML: Unknown Error"),
    ],
)
def test_nvml_that_cannot_start_is_a_sentence(tmp_path: Path, code: int, sentence: str) -> None:
    recording = load("two-rtx-3090")
    recording["nvml"]["init_error"] = code
    hardware = measure(recording, tmp_path)
    assert hardware.gpus == ()
    assert sentence in hardware.problems[0]


def test_a_lost_gpu_does_not_hide_its_neighbour(tmp_path: Path) -> None:
    recording = load("two-rtx-3090")
    recording["nvml"]["devices"][0]["handle_error"] = pynvml.NVML_ERROR_GPU_IS_LOST
    replayed = ReplayNvml(recording["nvml"])
    reader = NvmlReader(replayed)
    root = build(recording, tmp_path)
    hardware = observe_hardware(root, nvml=reader)
    assert [gpu.pci_address for gpu in hardware.gpus] == ["0000:0b:00.0"]
    assert "NVIDIA GPU 0 cannot be used" in hardware.problems[0]
    del recording["nvml"]["devices"][0]["handle_error"]
    assert len(observe_hardware(root, nvml=reader).gpus) == 2  # a new session finds it again
    assert replayed.sessions == 2


def test_nvml_is_opened_once_and_again_after_the_driver_was_reloaded() -> None:
    replayed = ReplayNvml(load("two-rtx-3090")["nvml"])
    reader = NvmlReader(replayed)
    first, second = reader.read(), reader.read()
    assert first == second
    assert replayed.sessions == 1
    replayed.open = False  # modprobe -r nvidia; modprobe nvidia
    third = reader.read()
    assert third == first
    assert replayed.sessions == 2


def test_a_driver_that_hangs_is_not_waited_for() -> None:
    release = threading.Event()

    class Hanging(ReplayNvml):
        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            release.wait(30)
            return super().nvmlDeviceGetCount()

    reader = NvmlReader(Hanging(load("two-rtx-3090")["nvml"]))
    try:
        first = reader.read(timeout_s=0.05)
        second = reader.read(timeout_s=0.05)
    finally:
        release.set()
    assert first is not None
    assert "did not answer within 0.05 s" in first.failure
    assert second is not None
    assert "still does not answer" in second.failure
    pending = reader._pending
    assert pending is not None
    pending.join(10)
    third = reader.read()
    assert third is not None
    assert len(third.devices) == 2


def test_a_driver_that_is_busy_keeps_its_gpus() -> None:
    release = threading.Event()
    release.set()

    class Busy(ReplayNvml):
        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            release.wait(30)
            return super().nvmlDeviceGetCount()

    reader = NvmlReader(Busy(load("two-rtx-3090")["nvml"]))
    before = reader.read()
    release.clear()
    try:
        late, later = reader.read(timeout_s=0.05), reader.read(timeout_s=0.05)
    finally:
        release.set()
    assert before is not None
    assert late is not None
    assert later is not None
    assert late.devices == later.devices == before.devices
    ram = Ram(1, 1)
    gpus, problems = interpret(late, ram)
    assert gpus == interpret(before, ram)[0]
    assert "did not answer" in problems[0]


async def test_this_very_machine_can_be_observed() -> None:
    hardware = await observe()
    assert hardware.hostname == socket.gethostname()
    assert hardware.cpu.physical_cores >= 1
    assert 0 < hardware.ram.available_bytes <= hardware.ram.total_bytes
