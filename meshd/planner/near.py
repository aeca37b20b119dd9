"""Nodes that may hold a part of a split of ours, what they have, and why the others may not. Pure.

What is worked out of a view is kept while its members are the same objects, and what is worked out
of a record while that is: a mesh of a thousand nodes is looked through for every model, and most of
the time one record of it is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

from meshd.mesh.record import EngineRecord, NodeRecord
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.burdens import STANDS_BY, Taken, burdens, taken_by_others
from meshd.planner.pace import CALIBRATION
from meshd.planner.plan import Code, Considered, Reason
from meshd.planner.same_engine import engines_differ
from meshd.planner.seen import Place, Solo, see

ENTER_MS: Final = 80.0
"""A node farther away takes no part in a new split; one that takes part leaves beyond `STAY_MS`."""
STAY_MS: Final = 100.0

_ANY = ""
_NEAR_MOST = 8
BARRED_MOST = 24


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that may take part. :ivar needed: by which other models, and how much that weighs."""

    id: str
    name: str
    rtt_s: float
    network_bytes_s: int
    places: tuple[Place, ...]
    taken: tuple[Taken, ...] = ()
    needed: tuple[tuple[str, float], ...] = ()

    def penalty(self, model: str) -> float:
        return max((share for other, share in self.needed if other != model), default=0.0)

    def room(self, place: Place, model: str, *, idle: bool) -> int:
        """:param idle: only what no other model holds."""
        return place.plannable_bytes - (taken_by_others(self.taken, place.pool, model) * idle)


@dataclass(frozen=True, slots=True)
class Near:
    """:ivar barred: those that may not take part: node, name, cause.

    :ivar solos: the nodes' own ways to serve a model, this one's too.
    :ivar pinned: names and ids of the only nodes that may have a part of a model; a model that is
        not there may be anywhere.
    :ivar own_taken: of this node's own memory.
    """

    peers: tuple[Peer, ...]
    barred: tuple[tuple[str, str, Code, str], ...]
    solos: Mapping[str, list[Solo]]
    pinned: Mapping[str, frozenset[str]]
    own_taken: tuple[Taken, ...]
    _ranked: dict[tuple[int, bool], tuple[Peer, ...]] = field(default_factory=dict, compare=False)
    _shown: list[tuple[Considered, ...]] = field(default_factory=list, compare=False)

    @property
    def shown(self) -> tuple[Considered, ...]:
        """The barred, as many as a plan shows."""
        if not self._shown:
            self._shown.append(those_barred(self.barred))
        return self._shown[0]

    def ranked(self, size_bytes: int, *, idle: bool) -> tuple[Peer, ...]:
        """The most promising first, for a model of about this size: by the seconds that a byte
        takes on their best device when it is as full as the model makes it, all costs reckoned in.
        """
        # Sizes that differ by less than four times share a list.
        key = (max(1, size_bytes).bit_length() // 2, idle)
        found = self._ranked.get(key)
        if found is None:
            most = 1 << (2 * key[0] + 1)
            prices = ((_price(peer, most, idle=idle), peer.id, peer) for peer in self.peers)
            ordered = sorted(one for one in prices if one[0] < inf)
            found = self._ranked[key] = tuple(peer for _, _, peer in ordered)
        return found


_near: dict[str, tuple[tuple[MemberView, ...], EngineRecord | None, Near]] = {}


def near(view: MeshView, me: str, engine: EngineRecord | None) -> Near:
    """Everything that a search for splits with `me` as host wants to know of the others."""
    kept = _near.get(me)
    if kept is not None and kept[0] is view.members and kept[1] == engine:
        return kept[2]
    made = _made(view, me, engine)
    if len(_near) >= _NEAR_MOST:
        _near.clear()
    _near[me] = (view.members, engine, made)
    return made


def bar(
    member: MemberView, own: NodeRecord, rtt_ms: float | None, *, inside: bool = False
) -> tuple[Code, str] | None:
    """Why a node may not hold a part of a split of ours; None where it may.

    :param own: our record as it is, of which the engine counts.
    :param inside: it holds one already: what passes is no reason to stop a model.
    """
    record = member.record
    if record.role == "client":
        return Code.ROLE, "its role is client"
    if record.draining:
        return Code.DRAINED_NODE, "it is being drained"
    if member.status is not Status.ALIVE and not (inside and member.status is Status.SUSPECT):
        return Code.SUSPECT, "it has been silent for a moment"
    if why := engines_differ(own, record):
        return Code.OTHER_BUILD, why
    if rtt_ms is None:
        return None if inside else (Code.RTT_UNKNOWN, "how far away it is is not measured yet")
    if rtt_ms > (STAY_MS if inside else ENTER_MS):
        return Code.FAR, f"{rtt_ms:.0f} ms away, {ENTER_MS:.0f} ms at most"
    return None


def rtt_between(own: NodeRecord | None, other: NodeRecord) -> float | None:
    """In ms, as either has measured it: the shorter one, for a busy node measures too much."""
    there = see(other).rtt.get(own.id) if own is not None else None
    here = see(own).rtt.get(other.id) if own is not None else None
    return min((one for one in (here, there) if one is not None), default=None)


def _made(view: MeshView, me: str, engine: EngineRecord | None) -> Near:
    mine = view.member(me)
    own = mine.record if mine is not None else NodeRecord(me)
    asking = NodeRecord(me, name=own.name, engine=engine)
    here = see(own).rtt
    peers: list[tuple[MemberView, float]] = []
    barred: list[tuple[str, str, Code, str]] = []
    for member in sorted(view.members, key=lambda one: one.id):
        if member.id == me:
            continue
        far = [
            one for one in (here.get(member.id), see(member.record).rtt.get(me)) if one is not None
        ]
        rtt_ms = min(far, default=None)
        why = bar(member, asking, rtt_ms)
        if why is not None:
            barred.append((member.id, member.record.name or member.id, *why))
        elif rtt_ms is not None:
            peers.append((member, rtt_ms))
    solos, needed, taken = burdens(view)
    pinned: dict[str, set[str]] = {}
    for member in view.members:
        seen = see(member.record)
        for model, names in seen.pins:
            pinned.setdefault(model, set()).update(names)
    return Near(
        peers=tuple(
            Peer(
                id=member.id,
                name=member.record.name or member.id,
                rtt_s=rtt_ms / 1000,
                network_bytes_s=member.record.network_bytes_s,
                places=see(member.record).places,
                taken=tuple(taken.get(member.id, ())),
                needed=(
                    *sorted(needed.get(member.id, {}).items()),
                    *(((_ANY, STANDS_BY),) if member.record.role == "standby" else ()),
                ),
            )
            for member, rtt_ms in peers
        ),
        barred=tuple(barred),
        solos=solos,
        pinned={model: frozenset(names) for model, names in pinned.items()},
        own_taken=tuple(taken.get(me, ())),
    )


def _price(peer: Peer, size_bytes: int, *, idle: bool) -> float:
    price = inf
    fixed_s = CALIBRATION.graph_s + peer.rtt_s
    for place in peer.places:
        room = place.plannable_bytes
        if idle and peer.taken:
            room = peer.room(place, _ANY, idle=True)
        if room > 0:
            price = min(price, 1 / place.pace.bytes_s + fixed_s / min(size_bytes, room))
    return price


def those_barred(barred: Sequence[tuple[str, str, Code, str]]) -> tuple[Considered, ...]:
    """Nodes that may not take part; of many, the rarest causes first, as they tell most."""
    counts: dict[Code, int] = {}
    for _, _, code, _ in barred:
        counts[code] = counts.get(code, 0) + 1
    ordered = sorted(barred, key=lambda one: (counts[one[2]], one[2], one[0]))
    shown = [Considered((node,), 0.0, Reason(code, text)) for node, _, code, text in ordered]
    if len(shown) <= BARRED_MOST:
        return tuple(shown)
    more, last = len(shown) - BARRED_MOST, shown[BARRED_MOST].reason
    reason = replace(last, text=f"and {more} more nodes: {last.text}")
    return (*shown[:BARRED_MOST], Considered((), 0.0, reason))
