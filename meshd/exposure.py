"""Where the gateway may listen: not for other machines before there is an API key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from meshd.config.addresses import Address, parse_address
from meshd.config.settings import Config
from meshd.keys.key_folder import KeyFolder, Signature, places
from meshd.paths import Paths

_HOME = "127.0.0.1"


def narrowed(listen: Sequence[str], *, keyed: bool) -> tuple[str, ...]:
    """The addresses to listen on. Without keys, those for other machines become this machine's own.

    Pure. :param keyed: there are keys, or somebody meant there to be.
    """
    if keyed:
        return tuple(listen)
    own: list[str] = []
    ports: dict[int, None] = {}
    for text in listen:
        address = _parsed(text)
        # What is no address at all is for whoever takes it up to refuse.
        if address is None or address.loopback:
            own.append(text)
        else:
            ports[address.port] = None
    for home in (f"{_HOME}:{port}" for port in ports):
        if not any(_clash(home, text) for text in own):
            own.append(home)
    return tuple(own)


def closed(listen: Sequence[str], *, keyed: bool) -> str:
    """Why the gateway does not listen where it should, in one sentence; "" when it does. Pure."""
    now = narrowed(listen, keyed=keyed)
    if now == tuple(listen):
        return ""
    missing = ", ".join(text for text in listen if text not in now)
    return (
        f"gateway.listen: {missing} stays closed to other machines as long as there are no API keys"
        f", and the gateway listens on {', '.join(now)} (meshd keys add NAME)"
    )


class Exposure:
    """Looks whether there are keys, at most once a pass."""

    def __init__(self, paths: Paths) -> None:
        self._folder = KeyFolder(places(paths.keys))
        self._seen: Signature | None = None

    async def listen(self, config: Config) -> tuple[str, ...]:
        """Where the gateway may listen now."""
        return narrowed(config.gateway.listen, keyed=await self._keyed())

    async def closed(self, config: Config) -> str:
        """As `closed`."""
        return closed(config.gateway.listen, keyed=await self._keyed())

    async def _keyed(self) -> bool:
        return await asyncio.to_thread(self._look)

    def _look(self) -> bool:
        seen = self._folder.where.signature()
        if seen != self._seen:
            self._seen = seen
            self._folder.read()
        return self._folder.ring.configured


def _parsed(text: str) -> Address | None:
    try:
        return parse_address(text)
    except ValueError:
        return None


def _clash(one: str, other: str) -> bool:
    first, second = _parsed(one), _parsed(other)
    return first is not None and second is not None and first.clashes(second)
