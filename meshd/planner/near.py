"""Nodes that may hold a part of a split of ours, what they have, and why the others may not. Pure.

What is worked out of a view is kept while its members are the same objects, and what is worked out
of a record while that is: a mesh of a thousand nodes is looked through for every model, and most of
the time one record of it is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from operator import attrgetter
from typing import Final

from meshd.mesh.record import EngineRecord, NodeRecord
from meshd.mesh.view import MemberView, MeshView, Status
from meshd.planner.burdens import STANDS_BY, Burdens, Taken, burdens, taken_by_others
from meshd.planner.pace import CALIBRATION
from meshd.planner.plan import Code, Considered, Reason
from meshd.planner.same_engine import engines_differ
from meshd.planner.seen import Place, Solo, see

ENTER_MS: Final = 80.0
"""A node farther away takes no part in a new split; one that takes part leaves beyond `STAY_MS`."""
STAY_MS: Final = 100.0

_ANY = ""
_NEAR_MOST = 8
_PRICES_MOST = 8192
BARRED_MOST = 24


Barred = tuple[str, str, Code, str]
"""A node that may not take part: id, name, cause, sentence."""


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
    barred: tuple[Barred, ...]
    solos: Mapping[str, list[Solo]]
    pinned: Mapping[str, frozenset[str]]
    own_taken: tuple[Taken, ...]
    _ranked: dict[tuple[int, bool], tuple[Peer, ...]] = field(default_factory=dict, compare=False)
    _prices: dict[tuple[int, bool], dict[str, tuple[Peer, float]]] = field(
        default_factory=dict, compare=False
    )
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
            prices = self._prices.setdefault(key, {})
            if len(prices) > _PRICES_MOST:
                prices.clear()
            for peer in self.peers:
                known = prices.get(peer.id)
                if known is None or known[0] is not peer:
                    prices[peer.id] = (peer, _price(peer, most, idle=idle))
            ordered = sorted(
                (price, peer.id, peer) for peer in self.peers if (price := prices[peer.id][1]) < inf
            )
            found = self._ranked[key] = tuple(peer for _, _, peer in ordered)
        return found


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a `Near` was made of. :ivar verdicts: of every other node, by id: it may, or why not."""

    members: tuple[MemberView, ...]
    asking: NodeRecord
    burdens: Burdens
    verdicts: dict[str, Peer | Barred]


_near: dict[str, tuple[_Basis, Near]] = {}


def near(view: MeshView, me: str, engine: EngineRecord | None) -> Near:
    """Everything that a search for splits with `me` as host wants to know of the others."""
    mine = view.member(me)
    own = mine.record if mine is not None else NodeRecord(me)
    asking = NodeRecord(me, name=own.name, engine=engine, rtt=own.rtt)
    kept = _near.get(me)
    if kept is not None and kept[0].asking == asking and kept[0].members is view.members:
        return kept[1]
    basis = _basis(view, asking, kept[0] if kept is not None else None)
    peers = tuple(one for one in basis.verdicts.values() if isinstance(one, Peer))
    barred = tuple(one for one in basis.verdicts.values() if not isinstance(one, Peer))
    before = kept[1] if kept is not None else None
    made = Near(
        peers=peers,
        barred=before.barred if before is not None and before.barred == barred else barred,
        solos=basis.burdens.solos,
        pinned=basis.burdens.pinned,
        own_taken=tuple(basis.burdens.taken.get(me, ())),
        _prices=before._prices if before is not None else {},
    )
    if len(_near) >= _NEAR_MOST:
        _near.clear()
    _near[me] = (basis, made)
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


def _basis(view: MeshView, asking: NodeRecord, before: _Basis | None) -> _Basis:
    """As before where the nodes said nothing new."""
    same: dict[str, MemberView] = {}
    known: dict[str, Peer | Barred] = {}
    load = None
    if before is not None:
        old = {member.id: member for member in before.members}
        same = {one.id: one for one in view.members if old.get(one.id) is one}
        if len(old) == len(view.members) and all(
            one.id in same or _asks_as_much(old.get(one.id), one) for one in view.members
        ):
            load = before.burdens
            if before.asking == asking:
                known = before.verdicts
    if load is None:
        load = burdens(view)
    verdicts: dict[str, Peer | Barred] = {}
    for member in sorted(view.members, key=attrgetter("id")):
        if member.id == asking.id:
            continue
        found = known.get(member.id) if member.id in same else None
        verdicts[member.id] = found if found is not None else _verdict(member, asking, load)
    return _Basis(view.members, asking, load, verdicts)


def _asks_as_much(old: MemberView | None, new: MemberView) -> bool:
    """Whether a node's new record changes nothing of what others are needed for."""
    if old is None:
        return False
    one, other = old.record, new.record
    return (
        old.status is new.status
        and one.draining == other.draining
        and one.assignments == other.assignments
        and one.offers == other.offers
        and one.wishes == other.wishes
        and see(one).pools == see(other).pools
    )


def _verdict(member: MemberView, asking: NodeRecord, load: Burdens) -> Peer | Barred:
    record = member.record
    rtt_ms = rtt_between(asking, record)
    name = record.name or member.id
    why = bar(member, asking, rtt_ms)
    if why is not None:
        return (member.id, name, *why)
    assert rtt_ms is not None
    return Peer(
        id=member.id,
        name=name,
        rtt_s=rtt_ms / 1000,
        network_bytes_s=record.network_bytes_s,
        places=see(record).places,
        taken=tuple(load.taken.get(member.id, ())),
        needed=(
            *sorted(load.needed.get(member.id, {}).items()),
            *(((_ANY, STANDS_BY),) if record.role == "standby" else ()),
        ),
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


def those_barred(barred: Sequence[Barred]) -> tuple[Considered, ...]:
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
