"""From a decided engine to the text of its drop-in. Pure: the same spec is the same text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from meshd.paths import Paths
from meshd.units.quoting import command, plain, quote, quote_path
from meshd.units.spec import ATTEMPT, EngineKind, EngineSpec, GpuAccess

DROPIN_NAME = "50-meshd.conf"

_ATTEMPT = re.compile(rf"^Environment={ATTEMPT}=([0-9]{{1,6}})$", re.MULTILINE)

_PROGRAMS = {
    EngineKind.LLAMA: "llama-server",
    EngineKind.RPC: "rpc-server",
    EngineKind.GUARD: "meshd guard",
}

# An engine that answers on its socket alone has no network; one whose layers lie on other nodes too
# reaches them through its guard.
_SPLIT_LINES = (
    "# A split: rpc-servers are reached through mesh-guard, whose local ends are on loopback.",
    "PrivateNetwork=no",
    "IPAddressAllow=localhost",
    "RestrictAddressFamilies=AF_INET",
)

# Parts of the operating system, which the engine sees read-only; every other tree at the top is
# emptied before the files to read are bound into it. The templates do that for the usual ones.
_SYSTEM_TREES = frozenset(
    [
        "bin",
        "boot",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "run",
        "sbin",
        "sys",
        "tmp",
        "usr",
        "var",
    ]
)
# ProtectHome=tmpfs empties /root too, but leaves it closed to all but root.
_EMPTIED_BY_TEMPLATE = frozenset(["home", "srv", "mnt", "media", "opt"])

_GPU_LINES: dict[GpuAccess, tuple[tuple[str, tuple[str, ...]], ...]] = {
    GpuAccess.NONE: (),
    GpuAccess.NVIDIA: (
        (
            "The driver's device nodes, and no others, in place of a /dev without any.",
            ("PrivateDevices=no", "DevicePolicy=closed", "DeviceAllow=char-nvidia* rw"),
        ),
        (
            "UVM nodes are made on first use, by a setuid helper that an engine cannot run.",
            ("ExecStartPre=-+/usr/bin/nvidia-modprobe -u -c 0",),
        ),
        (
            "CUDA compiles kernels for the card it finds (PTX to machine code).",
            ("MemoryDenyWriteExecute=no",),
        ),
        (
            "libcuda reads /proc/driver/nvidia and /proc/devices.",
            ("ProcSubset=all",),
        ),
    ),
    GpuAccess.DRI: (
        (
            "Render nodes, and AMD's compute node, in place of a /dev without any.",
            (
                "PrivateDevices=no",
                "DevicePolicy=closed",
                "DeviceAllow=char-drm rw",
                "DeviceAllow=/dev/kfd rw",
            ),
        ),
        (
            "The nodes belong to these groups, which a user namespace would not know.",
            ("SupplementaryGroups=render video", "PrivateUsers=no"),
        ),
        (
            "Vulkan and ROCm drivers compile shaders and kernels for the card they find.",
            ("MemoryDenyWriteExecute=no",),
        ),
        (
            "ROCm reads the memory's size from /proc/meminfo.",
            ("ProcSubset=all",),
        ),
    ),
}


def dropin_path(unit: str, units: Path) -> Path:
    """Where a unit's drop-in lies. :param units: on a system /run/systemd/system."""
    return units / f"{unit}.d" / DROPIN_NAME


def user(spec: EngineSpec) -> str:
    """The name of the engine's dynamic user.

    systemd would derive one from the template, the same for all instances, and engines could
    signal and trace each other. At most 31 characters of a small alphabet, hence the digest.
    """
    return f"_mesh-{spec.kind}-{hashlib.sha256(spec.name.encode()).hexdigest()[:12]}"


def render_dropin(spec: EngineSpec, paths: Paths) -> str:
    """The text of the drop-in that makes an instance of a template this engine.

    :param paths: names the configuration file to people; brain and hand have the same.
    :raises ValueError: for text that a unit file cannot hold (a NUL byte, an odd path).
    """
    return "\n".join(_lines(spec, paths)) + "\n"


def attempt_in(text: str) -> int:
    """The number of the try that a drop-in is of, 0 where it is of none."""
    found = _ATTEMPT.search(text)
    return int(found[1]) if found else 0


def _lines(spec: EngineSpec, paths: Paths) -> Iterator[str]:
    yield "# Written by meshd's hand and rewritten when the plan changes: do not edit."
    yield f"# What is wanted: {plain(str(paths.config))}; what a change would do: meshd plan"
    yield f"# Settings of your own: systemctl edit {spec.unit}"
    yield "[Unit]"
    program = _PROGRAMS[spec.kind]
    model = f"model {plain(spec.model)}, " if spec.model else ""
    what = "guard" if spec.kind is EngineKind.GUARD else "engine"
    yield f"Description=Mesh {what} {spec.name}: {model}{program}"
    yield ""
    yield "[Service]"
    if spec.kind is not EngineKind.GUARD:
        yield f"User={user(spec)}"
    yield "ExecStart="
    yield f"ExecStart=:{command(spec.argv)}"
    for name, value in spec.environment:
        yield f"Environment={quote(f'{name}={value}')}"
    if spec.attempt:
        yield f"Environment={ATTEMPT}={spec.attempt}"
    yield f"# Its log: journalctl MESHD_ENGINE={spec.name}"
    fields = {"MESHD_MODEL": spec.model, "MESHD_KIND": spec.kind, "MESHD_ENGINE": spec.name}
    yield "LogExtraFields=" + " ".join(quote(f"{name}={value}") for name, value in fields.items())
    if spec.memory_max_bytes is not None:
        yield f"MemoryMax={spec.memory_max_bytes}"
    yield from _reads(spec.reads)
    if spec.kind is EngineKind.LLAMA and "--rpc" in spec.argv:
        yield from _SPLIT_LINES
    for why, settings in _GPU_LINES[spec.gpu]:
        yield f"# {why}"
        yield from settings


def _reads(reads: tuple[str, ...]) -> Iterator[str]:
    trees = {PurePosixPath(path).parts[1] for path in reads if path.startswith("/")}
    for tree in sorted(trees - _SYSTEM_TREES - _EMPTIED_BY_TEMPLATE):
        yield f"TemporaryFileSystem={quote_path('/' + tree)}:ro"
    if reads:
        yield "# All that it may read of the trees where people keep files."
    for path in reads:
        yield f"BindReadOnlyPaths={quote_path(path)}"
