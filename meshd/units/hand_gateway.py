"""The hand's other work: to hold the gateway's sockets where the configuration wants them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from meshd.errors import UserError
from meshd.files import write_atomically
from meshd.units.gateway_socket import PEERS, SERVICE, UNIT, refusal, render_socket
from meshd.units.port import Systemd
from meshd.units.render import dropin_path

# mesh-peers.socket has its drop-in as a condition: where there is none, it stays closed.
_OPEN = "# Written by meshd's hand: this node has a mesh.\n"


@dataclass(frozen=True, slots=True)
class _Door:
    """A socket unit as it should be. :ivar text: of its drop-in. :ivar open: it listens at all."""

    unit: str
    path: Path
    text: str
    open: bool = True


async def move_gateway(
    listen: tuple[str, ...],
    allowed: frozenset[str],
    units: Path,
    systemd: Systemd,
    *,
    peers: tuple[str, ...] | None = None,
    allowed_peers: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """Listen there, if that is not so already; what went wrong, empty when all went well.

    Addresses that cannot be had are given up for those before: a gateway somewhere else is worth
    more than none.

    :param listen: as the brain has it; empty leaves everything as it is.
    :param allowed: as root's own configuration has it, since the brain is not taken at its word.
    :param peers: where other nodes reach this one, empty for nowhere, None to leave it as it is.
    :param allowed_peers: likewise as root's own configuration has it.
    """
    errors: list[str] = []
    for wanted, rooted, unit, what in (
        (listen or None, allowed, UNIT, "gateway"),
        (peers, allowed_peers, PEERS, "peer door"),
    ):
        if wanted is None:
            continue
        if why := refusal(wanted, what):
            errors.append(why)
        elif strangers := set(wanted) - rooted:
            needs = ", or has no API keys, which it needs then" if unit == UNIT else ""
            errors.append(
                f"{what}: /etc/mesh says nothing of {', '.join(sorted(strangers))}{needs}"
            )
        else:
            errors += await _move(wanted, unit, what, units, systemd)
    return tuple(errors)


async def _move(
    wanted: tuple[str, ...], unit: str, what: str, units: Path, systemd: Systemd
) -> tuple[str, ...]:
    path = dropin_path(unit, units)
    text = render_socket(wanted, unit) if wanted else ""
    if unit == PEERS and wanted:
        text = text or _OPEN
    door = _Door(unit, path, text, bool(wanted))
    read = await asyncio.to_thread(_read, path)
    before = _Door(unit, path, read, unit == UNIT or bool(read))
    if door == before:
        return ()
    try:
        await _listen(door, before, systemd)
    except (UserError, OSError) as error:
        try:
            await _listen(before, door, systemd)
        except (UserError, OSError) as worse:
            return (f"{what}: {error}; and the addresses before: {worse}",)
        return (f"{what}: cannot listen on {', '.join(wanted)}, it stays where it was: {error}",)
    return ()


async def _listen(door: _Door, before: _Door, systemd: Systemd) -> None:
    await asyncio.to_thread(_put, door.path, door.text)
    await systemd.reload()
    # A socket cannot move under a service that runs, and a client may start that again at any
    # time while its own socket is open; the next client after this starts it again at once.
    await systemd.stop(SERVICE)
    await systemd.stop(UNIT)
    failure: UserError | None = None
    if door.unit != UNIT:
        try:
            if door.open or before.open:
                await systemd.stop(door.unit)
            if door.open:
                await systemd.start(door.unit)
        except UserError as error:
            failure = error  # the clients' door opens all the same
    await systemd.start(UNIT)
    await systemd.start(SERVICE)
    if failure is not None:
        raise failure


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
