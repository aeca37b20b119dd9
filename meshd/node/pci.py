"""The display and compute devices on the PCI bus, as sysfs shows them.

Formats: Documentation/ABI/testing/sysfs-bus-pci; classes from the PCI Code and ID Assignment
Specification (0x03 display controllers, 0x12 processing accelerators).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from meshd.node.sysfs import read_number, read_text

VENDOR_AMD = 0x1002
VENDOR_NVIDIA = 0x10DE
VENDOR_INTEL = 0x8086

_GPU_CLASSES = (0x03, 0x12)
_ID_FILES = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
_MAX_DEVICES = 256


@dataclass(frozen=True, slots=True)
class PciGpu:
    """One function on the bus.

    :ivar address: ``dddd:bb:dd.f``, lower case.
    :ivar driver: the kernel driver bound to it, "" for none.
    :ivar folder: its folder in sysfs.
    :ivar card: folder of its DRM card node, None without one.
    :ivar render_node: ``renderD128`` and so on, "" without one.
    """

    address: str
    vendor: int
    device: int
    driver: str
    folder: Path
    card: Path | None = None
    render_node: str = ""


def normalise_address(text: str) -> str:
    """NVML writes an eight-digit domain and capitals; sysfs four digits and small letters."""
    match = re.fullmatch(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])", text)
    if match is None:
        return text.lower()
    domain = int(match[1] or "0", 16)
    return f"{domain:04x}:{match[2].lower()}"


def parse_uevent(text: str | None) -> dict[str, str]:
    """``KEY=value`` lines."""
    pairs = (line.partition("=") for line in (text or "").splitlines())
    return {key: value for key, separator, value in pairs if separator}


def read_gpus(root: Path) -> tuple[PciGpu, ...]:
    """Every display or processing device of the three vendors, ordered by address."""
    found: list[PciGpu] = []
    for folder in _folders(root / "sys/bus/pci/devices")[:_MAX_DEVICES]:
        vendor = read_number(folder / "vendor")
        class_code = read_number(folder / "class")
        if vendor not in (VENDOR_AMD, VENDOR_NVIDIA, VENDOR_INTEL) or class_code is None:
            continue
        if class_code >> 16 not in _GPU_CLASSES:
            continue
        uevent = parse_uevent(read_text(folder / "uevent"))
        nodes = _folders(folder / "drm")
        found.append(
            PciGpu(
                address=normalise_address(uevent.get("PCI_SLOT_NAME", folder.name)),
                vendor=vendor,
                device=read_number(folder / "device") or 0,
                driver=uevent.get("DRIVER", ""),
                folder=folder,
                card=next((node for node in nodes if re.fullmatch(r"card\d+", node.name)), None),
                render_node=next((n.name for n in nodes if n.name.startswith("renderD")), ""),
            )
        )
    return tuple(found)


def parse_device_name(ids: str, vendor: int, device: int) -> str:
    """A device's name in the text of pci.ids, "" where it has none.

    Vendors start a line, their devices follow behind one tab (pci.ids(5)). The name in brackets is
    the one on the box.
    """
    match = re.search(rf"(?m)^{vendor:04x}  .*\n((?:[\t#].*\n|\n)*)", ids)
    line = match and re.search(rf"(?m)^\t{device:04x}  (.+)$", match[1])
    if not line:
        return ""
    bracketed = re.search(r"\[([^]]+)\]", line[1])
    return bracketed[1] if bracketed else line[1].strip()


def read_device_name(root: Path, gpu: PciGpu) -> str:
    for file in _ID_FILES:
        try:
            ids = (root / file).read_text("utf-8", "replace")
        except OSError:
            continue
        return parse_device_name(ids, gpu.vendor, gpu.device)
    return ""


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []
