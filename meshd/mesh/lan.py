"""Finding cores of this mesh on the LAN, by Zenoh's multicast scouting.

A question by multicast, an answer by unicast; only cores answer, and only those of this mesh are
dialled: a session's id begins with the mesh's tag. What is found is an address to try, no more.
"""

from __future__ import annotations

import asyncio
import contextlib

import zenoh

from meshd.mesh.addresses import HostPort, host_port
from meshd.mesh.blocking import away
from meshd.mesh.candidates import Candidate
from meshd.mesh.zenoh_config import mesh_tag, node_tag, scout_text

LISTEN_S = 0.4
_MOST = 32


async def scout_lan(mesh: str, me: str, listen_s: float = LISTEN_S) -> tuple[Candidate, ...]:
    """Cores of this mesh that answer within `listen_s`; none where there is no multicast."""
    config = zenoh.Config.from_json5(scout_text())
    channel: zenoh.handlers.RingChannel[zenoh.Hello] = zenoh.handlers.RingChannel(_MOST)

    def stop(scout: zenoh.Scout[zenoh.handlers.Handler[zenoh.Hello]]) -> None:
        with contextlib.suppress(zenoh.ZError):
            scout.stop()  # type: ignore[no-untyped-call]

    try:
        scout = await away(lambda: zenoh.scout(channel, "router", config), 2.0, stop)
    except (zenoh.ZError, TimeoutError):
        return ()
    try:
        await asyncio.sleep(listen_s)
        found: dict[str, Candidate] = {}
        while (hello := scout.try_recv()) is not None:
            candidate = from_hello(str(hello.zid), list(hello.locators), mesh, me)
            if candidate is not None:
                found[str(hello.zid)] = candidate
        return tuple(found.values())
    finally:
        await away(lambda: stop(scout), 2.0, lambda _: None)


def from_hello(zid: str, locators: list[str], mesh: str, me: str) -> Candidate | None:
    """The core that answered, None when it is another mesh's, ourselves, or makes no sense."""
    tag = mesh_tag(mesh)
    if not zid.startswith(tag) or zid.startswith(tag + node_tag(me)):
        return None
    addresses: list[HostPort] = []
    for locator in locators[:16]:
        protocol, _, text = locator.partition("/")
        if protocol != "quic" or text.startswith(("[fe80", "127.", "[::1]")):
            continue
        with contextlib.suppress(ValueError):
            addresses.append(host_port(text.partition("?")[0], 0))
    # IPv4 before IPv6, as everywhere.
    addresses.sort(key=lambda address: ":" in address.host)
    return Candidate("", tuple(a for a in addresses if a.port), core=True) if addresses else None
