"""Where this node and the others are: what the configuration says, what records say, what an
earlier run remembers, and what the LAN answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from meshd.config.addresses import parse_address
from meshd.config.settings import MeshSettings
from meshd.mesh.addresses import HostPort, host_port, own_hosts, told_addresses
from meshd.mesh.candidates import Candidate, ordered
from meshd.mesh.lan import scout_lan
from meshd.mesh.peers_file import merged, read_peers, write_peers
from meshd.mesh.view import MeshView

_log = structlog.get_logger(__name__)

_RESOLVE_S = 2.0
_OWN_S = 60.0
_REMEMBER_EVERY_S = 30.0


class Whereabouts:
    """:param view: the mesh as of now. :param file: what is remembered."""

    def __init__(
        self,
        mesh: str,
        me: str,
        settings: MeshSettings,
        file: Path,
        view: Callable[[], MeshView],
        revoked: Callable[[], frozenset[str]],
    ) -> None:
        self._mesh, self._me, self._file = mesh, me, file
        self._view, self._revoked = view, revoked
        self._port = parse_address(settings.listen).port
        self._listen = settings.listen
        self._peers = tuple(host_port(text, self._port) for text in settings.peers)
        self._settings = settings
        self._remembered = read_peers(file)
        self._written: tuple[Candidate, ...] = self._remembered
        self._own: frozenset[HostPort] = frozenset()
        self._own_at = -_OWN_S
        self._remember_at = 0.0
        self.told: tuple[str, ...] = ()

    async def refresh_own(self) -> None:
        """Look at this machine's addresses again, at most once a minute."""
        if time.monotonic() - self._own_at < _OWN_S:
            return
        self._own_at = time.monotonic()
        hosts, self.told = await asyncio.to_thread(
            lambda: (own_hosts(), told_addresses(self._settings))
        )
        listen = parse_address(self._listen)
        told = {host_port(text, self._port) for text in self.told}
        mine = {HostPort(host, self._port) for host in (*hosts, *listen.hosts)}
        if any(host in {"::", "0.0.0.0"} for host in listen.hosts):  # noqa: S104 -- compared
            # The last is what Debian's /etc/hosts makes of this machine's own name.
            mine |= {HostPort(host, self._port) for host in ("127.0.0.1", "::1", "127.0.1.1")}
        self._own = frozenset(told | mine)

    async def seed(self) -> bool:
        """Whether others may wait for this node: it is named as a peer, or nobody is."""
        await self.refresh_own()
        peers = await self._resolved()
        return not peers or any(self._own.intersection(peer.addresses) for peer in peers)

    async def candidates(self, *, scout: bool) -> tuple[Candidate, ...]:
        """Whom to dial, best first. :param scout: ask the LAN as well, which takes a moment."""
        await self.refresh_own()
        found = await scout_lan(self._mesh, self._me) if scout else ()
        peers = await self._resolved()
        return ordered(
            self._members(),
            [*found, *peers],
            self._remembered,
            me=self._me,
            own=self._own,
            revoked=self._revoked(),
        )

    async def remember(self, *, now: bool = False) -> None:
        """Write down where the others are, when that changed and not all the time."""
        if not now and time.monotonic() < self._remember_at:
            return
        members = self._members()
        if not members:
            return
        self._remembered = merged(members, self._remembered)
        if self._remembered == self._written:
            return
        self._remember_at = time.monotonic() + _REMEMBER_EVERY_S
        self._written = self._remembered
        try:
            await asyncio.to_thread(write_peers, self._file, self._remembered)
        except OSError as error:
            _log.warning("peers are not remembered", path=str(self._file), reason=error.strerror)

    def _members(self) -> tuple[Candidate, ...]:
        found = []
        for member in self._view().members:
            if member.id == self._me:
                continue
            addresses = []
            for text in member.record.addresses[:8]:
                with contextlib.suppress(ValueError):
                    addresses.append(host_port(text, 0))
            usable = tuple(one for one in addresses if one.port)
            if usable:
                found.append(Candidate(member.id, usable, member.record.core))
        return tuple(found)

    async def _resolved(self) -> tuple[Candidate, ...]:
        """The configured peers that have addresses now."""
        found = await asyncio.gather(*map(_resolve, self._peers))
        return tuple(Candidate("", addresses, core=True) for addresses in found if addresses)


async def _resolve(peer: HostPort) -> tuple[HostPort, ...]:
    loop = asyncio.get_running_loop()
    try:
        answers = await asyncio.wait_for(
            loop.getaddrinfo(peer.host, peer.port, type=socket.SOCK_DGRAM), _RESOLVE_S
        )
    except (OSError, TimeoutError, UnicodeError):
        return ()
    hosts = dict.fromkeys(str(answer[4][0]) for answer in answers)
    return tuple(HostPort(host, peer.port) for host in list(hosts)[:4])
