"""The gateway's doors under systemd: socket units, which the hand moves and the brain looks at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from meshd.config.addresses import parse_address
from meshd.errors import UserError

UNIT = "mesh-gateway.socket"
PEERS = "mesh-peers.socket"
SERVICE = "mesh-gateway.service"
SHIPPED = ("127.0.0.1:9337",)
SHIPPED_PEERS = ("[::]:9338",)

_MAX_ADDRESSES = 16
# Below lie the ports of a system's own services, which the brain must not be able to take.
_LEAST_PORT = 1024


def refusal(listen: tuple[str, ...], what: str = "gateway") -> str:
    """Why the hand may not listen there, "" when it may. Pure.

    :param what: begins the sentence.
    """
    if len(listen) > _MAX_ADDRESSES:
        return f"{what}: {len(listen)} addresses are more than {_MAX_ADDRESSES}"
    for text in listen:
        try:
            address = parse_address(text)
        except ValueError as error:
            return f"{what}: {text[:80]!r}: {error}"
        if address.port < _LEAST_PORT:
            return f"{what}: {text}: ports below {_LEAST_PORT} are not for the mesh"
    return ""


def render_socket(listen: tuple[str, ...], unit: str = UNIT) -> str:
    """The drop-in for these addresses, "" when the shipped unit says it already. Pure."""
    if _known(listen) == _known(SHIPPED if unit == UNIT else SHIPPED_PEERS):
        return ""
    key = "gateway.listen" if unit == UNIT else "mesh.listen"
    lines = [
        f"# Written by meshd's hand from {key} in /etc/mesh/mesh.yaml: do not edit.",
        "[Socket]",
        "ListenStream=",
    ]
    for text in listen:
        address = parse_address(text)
        for host in sorted(address.hosts):
            shown = f"[{host}]" if ":" in host else host
            lines.append(f"ListenStream={shown}:{address.port}")
    return "\n".join(lines) + "\n"


class Listening(Protocol):
    """What this needs of systemd; see `meshd.units.dbus`."""

    async def listens(self, socket: str) -> tuple[str, ...]:
        """Where a socket unit listens. :raises SystemdError: it cannot be told."""


class GatewaySocket:
    """Says when the socket unit and the configuration disagree, so that neither is overlooked.

    :param systemd: the applier's connection, which is the applier's to close.
    """

    def __init__(self, systemd: Listening) -> None:
        self._systemd = systemd

    async def listen(self, addresses: tuple[str, ...], peers: tuple[str, ...] = ()) -> None:
        """Whether it is so.

        :param peers: where other nodes reach this one; empty for nowhere.
        :raises UserError: a unit listens elsewhere, or systemd does not answer.
        """
        await self._agrees("gateway.listen", UNIT, addresses)
        if peers:
            await self._agrees("mesh.listen", PEERS, peers)

    async def _agrees(self, key: str, unit: str, addresses: tuple[str, ...]) -> None:
        actual = await self._systemd.listens(unit)
        if _known(actual) != _known(addresses):
            raise UserError(
                f"{key} is {_words(addresses)}, but {unit} listens on {_words(actual)}",
                hint=f"systemctl cat {unit} shows who says so; is the address free?",
            )

    async def close(self) -> None:
        """The socket stays open: it is systemd's."""


def _known(addresses: Iterable[str]) -> set[tuple[str, int]]:
    """Each host and port by itself; a Unix socket's path, which has no port, has port 0."""
    known: set[tuple[str, int]] = set()
    for text in addresses:
        try:
            address = parse_address(text)
        except ValueError:
            known.add((text, 0))
            continue
        known |= {(host, address.port) for host in address.hosts}
    return known


def _words(addresses: Iterable[str]) -> str:
    return ", ".join(addresses) or "no address"
