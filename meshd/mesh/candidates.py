"""Whom to dial to reach the mesh, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshd.mesh.addresses import HostPort
from meshd.mesh.cores import rank

MOST = 16
_ADDRESSES_EACH = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may answer.

    :ivar node: its id, "" where only an address is known.
    :ivar core: it was a core when we last heard of it, so that it listens.
    """

    node: str
    addresses: tuple[HostPort, ...]
    core: bool = False


def ordered(
    members: Iterable[Candidate],
    peers: Iterable[Candidate],
    remembered: Iterable[Candidate],
    *,
    me: str,
    own: frozenset[HostPort],
    revoked: frozenset[str],
) -> tuple[Candidate, ...]:
    """Cores of the view first, then what the configuration names, then those of its members that
    become cores next, then what an earlier run remembers. No address twice, nobody revoked, not us.
    """
    members = sorted(members, key=lambda one: (not one.core, rank(one.node)))
    seen_nodes = {me, *revoked}
    seen_addresses = set(own)
    found: list[Candidate] = []

    def take(candidate: Candidate) -> None:
        if candidate.node in seen_nodes or len(found) >= MOST:
            return
        if not candidate.node and seen_addresses.intersection(candidate.addresses):
            return
        fresh = tuple(one for one in candidate.addresses if one not in seen_addresses)
        if not fresh:
            return
        if candidate.node:
            seen_nodes.add(candidate.node)
        seen_addresses.update(fresh)
        found.append(Candidate(candidate.node, fresh[:_ADDRESSES_EACH], candidate.core))

    for member in members:
        if member.core:
            take(member)
    for peer in peers:
        take(peer)
    for member in members:
        take(member)
    for candidate in sorted(remembered, key=lambda one: not one.core):
        take(candidate)
    return tuple(found)
