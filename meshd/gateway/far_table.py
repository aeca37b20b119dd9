"""The routing table as it looks from another machine, and back. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from meshd.gateway.routes import Front, RoutingTable, Target


def seen_from_outside(table: RoutingTable) -> RoutingTable:
    """Our engines behind its own peer door, and nothing of what lies on its disk.

    An engine of a node without a known address cannot be reached from outside and is left out.
    """
    address = next((peer.address for peer in table.peers if peer.node == table.node), "")
    routes = tuple(
        replace(route, targets=tuple(_outside(route.targets, address))) for route in table.routes
    )
    return replace(table, routes=routes, tls="", client=False, front=Front())


def for_client(table: RoutingTable, me: str, tls: str) -> RoutingTable:
    """What another node said, as this node's gateway may obey it.

    :param me: this node's id. :param tls: folder with its own certificate.
    """
    routes = tuple(
        replace(
            route,
            # A socket in it would be a path on this machine, named by somebody else.
            targets=tuple(
                _timeless(one) for one in route.targets if one.address and not one.socket
            ),
        )
        for route in table.routes
    )
    return replace(table, node=me, routes=routes, tls=tls, client=True)


def _outside(targets: tuple[Target, ...], address: str) -> Iterator[Target]:
    for target in targets:
        if not target.socket:
            yield _timeless(target)
        elif address:
            yield _timeless(replace(target, socket="", address=address))


def _timeless(target: Target) -> Target:
    """Another machine's monotonic clock says nothing here."""
    return replace(target, since_s=0.0) if target.since_s else target
