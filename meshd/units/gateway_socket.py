"""The gateway's door under systemd: a socket unit, which root owns and the brain cannot change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from meshd.config.addresses import Address, parse_address
from meshd.errors import UserError

UNIT = "mesh-gateway.socket"


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

    async def listen(self, addresses: tuple[str, ...]) -> None:
        """:raises UserError: the unit listens elsewhere, or systemd does not answer."""
        actual = await self._systemd.listens(UNIT)
        if _known(actual) != _known(addresses):
            raise UserError(
                f"gateway.listen is {_words(addresses)}, but {UNIT} listens on {_words(actual)}",
                hint=f"change ListenStream= with `systemctl edit {UNIT}`, then restart it",
            )

    async def close(self) -> None:
        """The socket stays open: it is systemd's."""


def _known(addresses: Iterable[str]) -> set[Address | str]:
    """Each in one spelling; what is no IP address (a Unix socket's path) stands for itself."""
    known: set[Address | str] = set()
    for text in addresses:
        try:
            known.add(parse_address(text))
        except ValueError:
            known.add(text)
    return known


def _words(addresses: Iterable[str]) -> str:
    return ", ".join(addresses) or "no address"
