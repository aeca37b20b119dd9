"""Asking NVML: opened once, opened again after the driver was reloaded, never waited for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pynvml

from meshd.node.nvidia import Answers, Device, Failure, Memory

_T = TypeVar("_T")

_MAX_DEVICES = 64
_MAX_INSTANCES = 16

# After these the session is dead, the next one may not be.
_REOPEN = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_UNKNOWN,
)

_SENTENCES = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded: modprobe nvidia",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver in the kernel and its library have different versions, "
        "as after an upgrade: reboot"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "NVML: no permission to the NVIDIA device nodes (/dev/nvidia*, /dev/nvidiactl)"
    ),
}


class NvmlReader:
    """Reads all NVIDIA GPUs. Calls into a sick driver can hang, so each runs in its own thread.

    :param nvml: the pynvml module, or what replays its answers.
    """

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._open = False
        self._lock = threading.Lock()
        self._pending: threading.Thread | None = None
        self._last = Answers()

    def read(self, timeout_s: float = 5.0) -> Answers | None:
        """The answers, None where there is no NVML on this machine.

        Never raises and never takes longer than ``timeout_s``; while an earlier call still hangs,
        no second one is made. Meanwhile the devices of the last answer stand: a driver that is
        busy for a while must not drive engines from their GPUs.
        """
        box: list[Answers | None] = []

        def work() -> None:
            box.append(self._read())

        with self._lock:
            if self._pending is not None and self._pending.is_alive():
                return self._late("NVML still does not answer an earlier question: see dmesg")
            thread = threading.Thread(target=work, name="nvml", daemon=True)
            self._pending = thread
            thread.start()
        thread.join(timeout_s)
        if thread.is_alive():
            return self._late(f"NVML did not answer within {timeout_s:g} s: see dmesg")
        if not box:
            return Answers(failure="NVML failed in a way that it does not explain")
        self._last = box[0] or Answers()
        return box[0]

    def _late(self, failure: str) -> Answers:
        return replace(self._last, failure=failure)

    def close(self) -> None:
        if self._open:
            with contextlib.suppress(pynvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._open = False

    def _read(self) -> Answers | None:
        try:
            return self._session()
        except pynvml.NVMLError_LibraryNotFound:
            return None
        except pynvml.NVMLError as error:
            if error.value in _REOPEN and self._open:
                self.close()
                with contextlib.suppress(pynvml.NVMLError):
                    return self._session()
            self.close()
            return Answers(failure=_SENTENCES.get(error.value, f"NVML: {error}"))
        except (OSError, AttributeError, ValueError, UnicodeError) as error:
            self.close()
            return Answers(failure=f"NVML: {error}")

    def _session(self) -> Answers:
        if not self._open:
            self._nvml.nvmlInit()
            self._open = True
        count = min(self._nvml.nvmlDeviceGetCount(), _MAX_DEVICES)
        driver = self._nvml.nvmlSystemGetDriverVersion()
        devices = tuple(self._device(index) for index in range(count))
        if any(device.failure and device.failure.code in _REOPEN for device in devices):
            self.close()  # a lost GPU stays lost in this session, not always in the next
        return Answers(driver, devices)

    def _device(self, index: int) -> Device:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            device = self._describe(index, handle, _text(nvml.nvmlDeviceGetPciInfo(handle).busId))
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_UNINITIALIZED:
                raise
            # A lost GPU must not hide its neighbours; a new session may find it again.
            return Device(index, failure=Failure(error.value, str(error)))
        mode = _optional(lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
        if mode != pynvml.NVML_DEVICE_MIG_ENABLE:
            return device
        return Device(
            index=index,
            uuid=device.uuid,
            name=device.name,
            bus_id=device.bus_id,
            memory=device.memory,
            mig_enabled=True,
            instances=self._instances(handle, device.bus_id),
        )

    def _instances(self, parent: Any, bus_id: str) -> tuple[Device, ...]:
        nvml = self._nvml
        count = _optional(lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(parent)) or 0
        found: list[Device] = []
        for index in range(min(count, _MAX_INSTANCES)):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, index)
                found.append(self._describe(index, handle, bus_id))
            except pynvml.NVMLError:  # a place that no instance has taken: NotFound
                continue
        return tuple(found)

    def _describe(self, index: int, handle: Any, bus_id: str) -> Device:
        return Device(
            index=index,
            uuid=_text(self._nvml.nvmlDeviceGetUUID(handle)),
            name=_text(self._nvml.nvmlDeviceGetName(handle)),
            bus_id=bus_id,
            memory=self._memory(handle),
        )

    def _memory(self, handle: Any) -> Memory | Failure:
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError as error:
            return Failure(error.value, str(error))
        return Memory(int(memory.total), int(memory.free))


def _optional(call: Callable[[], _T]) -> _T | None:
    try:
        return call()
    except pynvml.NVMLError:  # not supported on most cards
        return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
