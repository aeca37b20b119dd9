"""Asking systemd about units, by its own command, with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

from meshd.doctor.evidence import Unit

UNITS = (
    "mesh.target",
    "meshd.service",
    "mesh-apply.path",
    "mesh-apply.service",
    "mesh-gateway.socket",
    "mesh-gateway.service",
    "llama-server.service",
    "mesh-llama@*.service",
    "mesh-rpc@*.service",
    "mesh-guard@*.service",
)
_PROPERTIES = "Id,LoadState,ActiveState,SubState,UnitFileState,Result,NRestarts"


def booted(root: Path = Path("/")) -> bool:
    """Whether systemd is the service manager: sd_booted(3)."""
    return (root / "run/systemd/system").is_dir()


def parse_version(text: str) -> int | None:
    """The first line of `systemctl --version`: ``systemd 257 (257.9-1~deb13u1)``."""
    match = re.match(r"systemd (\d+)", text)
    return int(match[1]) if match else None


def parse_units(text: str) -> tuple[Unit, ...]:
    """`systemctl show`: properties by line, a blank line between units."""
    units = []
    for block in re.split(r"\n\s*\n", text):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if not values.get("Id") or values.get("LoadState") == "not-found":
            continue
        restarts = values.get("NRestarts", "")
        units.append(
            Unit(
                name=values["Id"],
                load=values.get("LoadState", ""),
                active=values.get("ActiveState", ""),
                sub=values.get("SubState", ""),
                enabled=values.get("UnitFileState", ""),
                result=values.get("Result", ""),
                restarts=int(restarts) if restarts.isdigit() else 0,
            )
        )
    return tuple(units)


async def read_version() -> int | None:
    return parse_version(await output("systemctl", "--version"))


async def read_units() -> tuple[Unit, ...]:
    return parse_units(await output("systemctl", "show", f"--property={_PROPERTIES}", *UNITS))


async def read_clock() -> bool | None:
    answer = await output("timedatectl", "show", "--property=NTPSynchronized", "--value")
    return {"yes": True, "no": False}.get(answer.strip())


async def output(*command: str, timeout_s: float = 5.0) -> str:
    """What a command printed, "" where it is not there, fails or takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ""
    try:
        content, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return ""
    return content.decode("utf-8", "replace")
