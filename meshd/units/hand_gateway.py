"""The hand's other work: to hold the gateway's socket where the configuration wants it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from meshd.errors import UserError
from meshd.files import write_atomically
from meshd.units.gateway_socket import SERVICE, UNIT, refusal, render_socket
from meshd.units.port import Systemd
from meshd.units.render import dropin_path


async def move_gateway(
    listen: tuple[str, ...], allowed: frozenset[str], units: Path, systemd: Systemd
) -> tuple[str, ...]:
    """Listen there, if that is not so already; what went wrong, empty when all went well.

    Addresses that cannot be had are given up for those before: a gateway somewhere else is worth
    more than none.

    :param listen: as the brain has it; empty leaves everything as it is.
    :param allowed: as root's own configuration has it, since the brain is not taken at its word.
    """
    if not listen:
        return ()
    if why := refusal(listen):
        return (why,)
    if strangers := set(listen) - allowed:
        return (f"gateway: /etc/mesh says nothing of {', '.join(sorted(strangers))}",)
    path = dropin_path(UNIT, units)
    wanted = render_socket(listen)
    before = await asyncio.to_thread(_read, path)
    if wanted == before:
        return ()
    try:
        await _listen(path, wanted, systemd)
    except (UserError, OSError) as error:
        try:
            await _listen(path, before, systemd)
        except (UserError, OSError) as worse:
            return (f"gateway: {error}; and the addresses before: {worse}",)
        return (f"gateway: cannot listen on {', '.join(listen)}, it stays where it was: {error}",)
    return ()


async def _listen(path: Path, text: str, systemd: Systemd) -> None:
    await asyncio.to_thread(_put, path, text)
    await systemd.reload()
    # A socket cannot move under a service that runs; the next client starts it again at once.
    await systemd.stop(SERVICE)
    await systemd.stop(UNIT)
    await systemd.start(UNIT)
    await systemd.start(SERVICE)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""


def _put(path: Path, text: str) -> None:
    if text:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        write_atomically(path, text.encode())
        return
    path.unlink(missing_ok=True)
