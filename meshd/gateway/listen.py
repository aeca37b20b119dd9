"""Where the gateway is reached: addresses of its own, or sockets that systemd holds."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from meshd.errors import UserError

_FIRST_FD = 3  # sd_listen_fds(3)
_BACKLOG = 1024

PEERS = "peers"
"""FileDescriptorName= of mesh-peers.socket."""

# IPv6 places also carry the scope of a link-local address.
_Place = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Address:
    """:ivar host: a name, an address, or "" for every address of this node."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`HOST:PORT`, `[IPV6]:PORT`, or `*:PORT` for all addresses.

    :raises UserError: anything else.
    """
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    well_formed = colon and host and port.isascii() and port.isdigit() and int(port) <= 65535
    if not well_formed or (":" in host) is not bracketed:
        raise UserError(
            f"--listen {text!r} is not an address",
            hint="write HOST:PORT, [IPV6]:PORT or *:PORT, e.g. 127.0.0.1:9337",
        )
    return Address("" if host == "*" else host, int(port))


def open_sockets(addresses: Sequence[Address], *, dual: bool = False) -> list[socket.socket]:
    """A listening socket for every address, or none at all.

    IPv6 sockets take IPv6 only, so that `0.0.0.0:9337` and `[::]:9337` can stand side by side.

    :param dual: let `[::]` take IPv4 as well, as systemd does.

    :raises UserError: a name that is not known, an address that is not ours or is in use.
    """
    with ExitStack() as undo:
        sockets: list[socket.socket] = []
        for address in addresses:
            for family, place in _resolve(address):
                listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                _bind(listener, family, place, address, only=not dual)
                sockets.append(listener)
        undo.pop_all()
    return sockets


@dataclass(frozen=True, slots=True)
class Sockets:
    """Listening ones. :ivar clients: for plain HTTP. :ivar peers: for other nodes."""

    clients: list[socket.socket] = field(default_factory=list)
    peers: list[socket.socket] = field(default_factory=list)


def inherited_sockets(environment: MutableMapping[str, str], pid: int) -> Sockets:
    """The sockets that systemd opened for this very process; none without socket activation.

    The variables are taken out of the environment, so that no child believes they are its own.
    Protocol: sd_listen_fds_with_names(3); those named ``peers`` are for other nodes.

    :raises UserError: a descriptor that is not a listening stream socket.
    """
    for_pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    sockets = Sockets()
    if not count.isdigit() or for_pid != str(pid):
        return sockets
    for number in range(int(count)):
        fd = _FIRST_FD + number
        try:
            os.set_inheritable(fd, False)
            listener = socket.socket(fileno=fd)
            listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            listening = 0
        if not listening:
            raise UserError(
                f"LISTEN_FDS: descriptor {fd} is not a listening stream socket",
                hint="see ListenStream= in mesh-gateway.socket and mesh-peers.socket",
            )
        listener.setblocking(False)
        named = names[number] if number < len(names) else ""
        (sockets.peers if named == PEERS else sockets.clients).append(listener)
    return sockets


def _resolve(address: Address) -> list[tuple[socket.AddressFamily, _Place]]:
    try:
        found = socket.getaddrinfo(
            address.host or None,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--listen {address}: {error}") from None
    # A name may resolve to the same address twice.
    places = dict.fromkeys(
        (family, place)
        for family, _, _, _, place in found
        if family in (socket.AF_INET, socket.AF_INET6)
    )
    return [*places]


def _bind(
    listener: socket.socket,
    family: socket.AddressFamily,
    place: _Place,
    address: Address,
    *,
    only: bool,
) -> None:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
        listener.bind(place)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        raise UserError(
            f"cannot listen on {address}: {error.strerror}",
            hint=f"see who has it: ss -ltnp 'sport = :{address.port}'",
        ) from None
