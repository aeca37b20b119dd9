"""Which nodes may run a model, in what order they are asked, and why the others may not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from statistics import median
from typing import NamedTuple

from meshd.mesh.record import Assignment, MemoryUse, NodeRecord, Offer, Stage
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.mesh_plan import Excluded
from meshd.planner.plan import Code, Strategy
from meshd.planner.wishes import Wanted

_ORDER = {Strategy.SOLO_GPU: 0, Strategy.SOLO_OFFLOAD: 1, Strategy.SOLO_CPU: 2}
_ORDER_UNKNOWN = len(_ORDER)
_RTT_UNKNOWN = 99
_SPEED_STEP = math.log(1.5)

Rank = tuple[bool, int, int, bool]
"""Standby, strategy, speed (a step is 1.5 times), not asked for there: small is better."""


class Site(NamedTuple):
    """A node that may run a model. :ivar tie: decides between equals: distance, then chance."""

    rank: Rank
    tie: tuple[int, int]
    node: str
    offer: Offer | None


@dataclass(frozen=True, slots=True)
class Known:
    """A member, with what is looked up for every model made ready once."""

    member: MemberView
    offers: Mapping[str, Offer]
    assignments: Mapping[str, Assignment]
    near: int

    @property
    def alive(self) -> bool:
        return self.member.status is Status.ALIVE


@dataclass(frozen=True, slots=True)
class Eligible:
    """:ivar fingerprint: the content that the mesh serves under the model's name.

    :ivar sites: nodes that may take it, best first.
    :ivar notes: what is peculiar about them.
    """

    fingerprint: str
    sites: tuple[Site, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...] = ()


def known_members(view: MeshView) -> dict[str, Known]:
    """The alive and the suspect ones, in the order of their ids."""
    return {
        member.id: Known(
            member,
            {offer.model: offer for offer in reversed(member.record.offers)},
            {one.model: one for one in reversed(member.record.assignments)},
            _nearness(member.record),
        )
        for member in sorted(view.members, key=lambda member: member.id)
        if member.status in (Status.ALIVE, Status.SUSPECT)
    }


def eligible(asked: Wanted, known: Mapping[str, Known]) -> Eligible:
    """Sort the members into those that may take the model and those that may not."""
    model = asked.model
    open_to: list[tuple[Known, Offer]] = []
    excluded: list[Excluded] = []
    for node, one in known.items():
        offer = one.offers.get(model)
        obstacle = _obstacle(asked, one, offer)
        if obstacle is not None:
            excluded.append(Excluded(node, *obstacle))
        elif offer is not None:
            open_to.append((one, offer))
    fingerprint, notes = _content(model, open_to, known)
    sites: list[Site] = []
    for one, offer in open_to:
        node = one.member.id
        if offer.fingerprint != fingerprint:
            text = f"has other content of that name ({_short(offer.fingerprint)})"
            excluded.append(Excluded(node, Code.OTHER_CONTENT, text))
        elif (passing := _passing(one, model)) is not None:
            excluded.append(Excluded(node, *passing))
        else:
            sites.append(site(asked, one, offer))
    sites.sort()
    return Eligible(fingerprint, tuple(sites), tuple(excluded), notes)


def site(asked: Wanted, one: Known, offer: Offer | None) -> Site:
    """How good this node is for that model; told from its own record alone, so that two nodes that
    compare themselves come to one result whatever else they see.
    """
    node = one.member.id
    order, speed = _ORDER_UNKNOWN, 0
    if offer is not None:
        order = _ORDER.get(offer.strategy, _ORDER_UNKNOWN)  # type: ignore[call-overload]
        speed = _speed(offer.tokens_s)
    rank = (one.member.record.role == "standby", order, -speed, node not in asked.asked_by)
    return Site(rank, (one.near, _chance(asked.model, node)), node, offer)


def misplaced(asked: Wanted, one: Known, running: Assignment, fingerprint: str) -> str:
    """Why a replica that runs here should not; empty when it may."""
    if one.member.record.role == "client":
        return "this node's role is client"
    if not _pinned_here(asked, one):
        return f"the configuration names other nodes: {', '.join(sorted(asked.nodes))}"
    if fingerprint and running.fingerprint and running.fingerprint != fingerprint:
        return f"it has other content of that name ({_short(running.fingerprint)})"
    return ""


def summed(memory: tuple[MemoryUse, ...]) -> tuple[MemoryUse, ...]:
    """One entry a device."""
    if len({use.device for use in memory}) == len(memory):
        return memory
    sizes: dict[str, int] = {}
    for use in memory:
        sizes[use.device] = sizes.get(use.device, 0) + use.size_bytes
    return tuple(MemoryUse(device, size_bytes) for device, size_bytes in sizes.items())


def _obstacle(asked: Wanted, one: Known, offer: Offer | None) -> tuple[Code, str] | None:
    """What lasts: it would not serve this model however much memory were free."""
    if one.member.record.role == "client":
        return Code.ROLE, "its role is client"
    if asked.nodes and not _pinned_here(asked, one):
        return Code.NOT_PINNED, f"models[].nodes names {', '.join(sorted(asked.nodes))}"
    if offer is None:
        return Code.NOT_OFFERED, "it does not say that it could serve this model"
    if offer.problem or offer.strategy not in _ORDER:
        code = Code(offer.code) if offer.code in _CODES else Code.CANNOT_SERVE
        return code, offer.problem or f"cannot serve it: strategy {offer.strategy}"
    return None


_CODES = frozenset(Code)


def _passing(one: Known, model: str) -> tuple[Code, str] | None:
    """What passes: for now it may not take a new replica."""
    running = one.assignments.get(model)
    if running is not None and running.stage is Stage.FAILED:
        return Code.FAILED_HERE, running.detail or "its engine failed"
    if running is not None and running.stage is Stage.DRAINING:
        return Code.DRAINING_HERE, "it is giving it back just now"
    if not one.alive and (running is None or running.stage is Stage.CLAIMED):
        return Code.SUSPECT, "it has been silent for a moment"
    return None


def _pinned_here(asked: Wanted, one: Known) -> bool:
    if not asked.nodes:
        return True
    record = one.member.record
    return one.member.id in asked.nodes or (record.name != "" and record.name in asked.nodes)


def _content(
    model: str, open_to: list[tuple[Known, Offer]], known: Mapping[str, Known]
) -> tuple[str, tuple[str, ...]]:
    """What most of those that could serve it hold; of equals what runs already, then the lowest."""
    votes = Counter(offer.fingerprint for _, offer in open_to)
    if len(votes) == 1:
        return next(iter(votes)), ()
    runs = Counter(
        running.fingerprint
        for one in known.values()
        if (running := one.assignments.get(model)) is not None
        and running.stage in (Stage.LOADING, Stage.READY)
    )
    if not votes:
        return min(runs, key=lambda content: (-runs[content], content), default=""), ()
    best = min(votes, key=lambda content: (-votes[content], -runs[content], content))
    others = len(open_to) - votes[best]
    return best, (f"{others} of {len(open_to)} nodes hold other content under this name",)


def _nearness(record: NodeRecord) -> int:
    """The median of its round trips, in steps of doubling; unknown is farther than all."""
    if not record.rtt:
        return _RTT_UNKNOWN
    return max(0, int(median(rtt.median_ms for rtt in record.rtt)).bit_length())


def _speed(tokens_s: float) -> int:
    """Steps of 1.5 times, so that a measurement that moved a little changes nobody's order."""
    if not math.isfinite(tokens_s) or tokens_s < 1.0:
        return 0
    return 1 + int(math.log(tokens_s) / _SPEED_STEP)


@lru_cache(maxsize=1 << 18)
def _chance(model: str, node: str) -> int:
    """Rendezvous hashing (Thaler and Ravishankar, 1998): models spread, and a node that leaves
    moves only its own.
    """
    return int.from_bytes(blake2b(f"{model}\0{node}".encode(), digest_size=8).digest(), "big")


def _short(fingerprint: str) -> str:
    return fingerprint[:12] or "unknown"
