"""Where signed items come in: cheap checks first, signatures last, then the lattice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from meshd.mesh.envelope import Gate, Verifier
from meshd.mesh.lattice import DEAD, REVOKED, Lattice, Slot, mark_of
from meshd.mesh.membership import Standing, owner_incarnation, standing_of
from meshd.mesh.messages import Burial, Entry, Item, Revocation, decode_signed
from meshd.mesh.revocations import Revocations
from meshd.mesh.view import Status

TOMBSTONE_S = 24 * 3600.0
FLOOD_BURST = 64.0
FLOOD_PER_S = 16.0
REBURIAL_S = 60.0

_WITHDRAWN_BY_LEAVING = ("rec", "dem")
_ABSENT = Standing()


class Kind(Enum):
    """What an item changed. CLASH: somebody else speaks as us. BURIED: we are said to be dead."""

    ENTRY = 1
    BURIAL = 2
    REVOCATION = 3
    CLASH = 4
    BURIED = 5


@dataclass(frozen=True, slots=True)
class News:
    """:ivar risen: the owner's incarnation is higher than it was."""

    kind: Kind
    owner: str
    space: str = ""
    incarnation: int = 0
    risen: bool = False


class Intake:
    """:ivar incarnation: our own; what is at or above it and not ours is not merged."""

    def __init__(self, me: str, verifier: Verifier, incarnation: int) -> None:
        self.me = me
        self.incarnation = incarnation
        self.gate = Gate(verifier)
        self.lattice = Lattice()
        self.revocations = Revocations(self.gate)
        self.standings: dict[str, Standing] = {}
        self.tokens: set[str] = set()
        self._gone: dict[str, float] = {}
        self._flow: dict[str, tuple[float, float]] = {}
        self._refuted: dict[str, tuple[str, float]] = {}
        self._echoed = (-1, -1)

    def standing(self, node: str) -> Standing:
        return self.standings.get(node, _ABSENT)

    def absorb(self, raw: bytes, now_s: float, age_s: float = 0.0, *, put: bool) -> News | None:
        """What this item changes, None for nothing: old, unsigned, malformed, or too much.

        :param put: it came unasked; one owner's may then not come faster than `FLOOD_PER_S`.
        """
        item = decode_signed(raw)
        if type(item) is Entry:
            return self._entry(item, raw, now_s, age_s, put)
        if type(item) is Burial:
            return self._burial(item, raw, now_s, age_s)
        if type(item) is Revocation:
            return self._revocation(raw, now_s)
        return None

    def write(self, space: str, version: int, raw: bytes, payload: bytes, now_s: float) -> None:
        """Our own entry of our present incarnation."""
        slot = Slot(self.incarnation, version, raw, payload, mark_of(raw), now_s)
        self.lattice.put(self.me, space, slot)
        self._tidy(self.me, now_s)

    def items(self, owner: str, spaces: list[str], now_s: float) -> Iterator[Item]:
        """What is handed on of an owner: what proves a burial goes before it."""
        slots = self.lattice.owners.get(owner, {})
        gone_s = self._gone.get(owner)
        if gone_s is not None and now_s - gone_s > TOMBSTONE_S - 600:
            return
        for space in sorted(spaces, key=DEAD.__eq__):
            slot = slots.get(space)
            if slot is not None:
                yield Item(min(max(0.0, now_s - slot.born_s), 1e6), slot.raw)

    def useless(self, owner: str, space: str, incarnation: int) -> bool:
        """Whether an item would be refused however often it came."""
        if owner in self.revocations:
            return True
        if space == DEAD:
            return incarnation < self.standing(owner).incarnation
        standing = self.standing(owner)
        return (
            standing.status is Status.LEFT
            and space in _WITHDRAWN_BY_LEAVING
            and incarnation <= standing.incarnation
        )

    def forget_old(self, now_s: float) -> None:
        """Drop tombstones that are a day old."""
        for owner in [node for node, since in self._gone.items() if now_s - since > TOMBSTONE_S]:
            self._forget(owner)

    def _entry(
        self, entry: Entry, raw: bytes, now_s: float, age_s: float, put: bool
    ) -> News | None:
        owner = self.gate.owner(entry.key)
        space = entry.space
        if owner == self.me and put and entry.incarnation < self.incarnation:
            return self._echo(entry, raw, now_s)
        slot = self.lattice.get(owner, space)
        if slot is not None:
            if (entry.incarnation, entry.version) < (slot.incarnation, slot.version):
                return None
            if raw == slot.raw:
                return None
        if self.useless(owner, space, entry.incarnation):
            return None
        clash = owner == self.me and entry.incarnation >= self.incarnation
        merged = Slot(
            entry.incarnation, entry.version, raw, entry.payload, mark_of(raw), now_s - age_s
        )
        if not clash and not self.lattice.newer(owner, space, merged.order):
            return None
        if put and not self._flows(owner, now_s):
            return None
        if not self.gate.entry_holds(entry, raw):
            return None
        if clash:
            return News(Kind.CLASH, owner, space, entry.incarnation)
        known = self.standing(owner).incarnation
        if not self._put(owner, space, merged, now_s):
            return None
        risen = entry.incarnation > known
        return News(Kind.ENTRY, owner, space, entry.incarnation, risen)

    def _echo(self, entry: Entry, raw: bytes, now_s: float) -> News | None:
        """Our name on something below our incarnation: from an earlier life, or from a twin, who
        goes on to say newer things.
        """
        order = (entry.incarnation, entry.version)
        slot = self.lattice.get(self.me, entry.space)
        if order <= self._echoed or (slot is not None and raw == slot.raw):
            return None
        if not self._flows(self.me, now_s) or not self.gate.entry_holds(entry, raw):
            return None
        self._echoed = order
        return News(Kind.CLASH, self.me, entry.space, entry.incarnation)

    def _burial(self, burial: Burial, raw: bytes, now_s: float, age_s: float) -> News | None:
        node = burial.node
        known = self.incarnation if node == self.me else self.standing(node).incarnation
        # Never beyond what the owner itself signed: nobody can drive its incarnation up.
        if burial.incarnation != known or self.standing(node).status is Status.DEAD:
            return None
        speaker = self.gate.owner(burial.key)
        if speaker in self.revocations or speaker == node or self._repeats(speaker, node, now_s):
            return None
        if not self.gate.burial_holds(burial, raw):
            return None
        if node == self.me:
            return News(Kind.BURIED, node, DEAD, burial.incarnation)
        slot = Slot(burial.incarnation, 0, raw, b"", 1, now_s - age_s)
        self._refuted[node] = (speaker, 0.0)
        if not self._put(node, DEAD, slot, now_s):
            return None
        return News(Kind.BURIAL, node, DEAD, burial.incarnation)

    def _revocation(self, raw: bytes, now_s: float) -> News | None:
        node = self.revocations.add(raw)
        if node is None:
            return None
        self._forget(node)
        self.lattice.put(node, REVOKED, Slot(0, 0, raw, b"", 1, now_s))
        return News(Kind.REVOCATION, node, REVOKED)

    def _repeats(self, speaker: str, node: str, now_s: float) -> bool:
        """Whether it just buried this node in vain and we still see the node."""
        last, refuted_s = self._refuted.get(node, ("", 0.0))
        return (
            last == speaker
            and node in self.tokens
            and bool(refuted_s)
            and now_s - refuted_s < REBURIAL_S
        )

    def _put(self, owner: str, space: str, slot: Slot, now_s: float) -> bool:
        while self.lattice.full(owner, len(slot.raw)) and self._gone:
            oldest = min(self._gone, key=self._gone.__getitem__)
            if oldest == owner:
                return False
            self._forget(oldest)
        if not self.lattice.put(owner, space, slot):
            return False
        self._tidy(owner, now_s)
        return True

    def _tidy(self, owner: str, now_s: float) -> None:
        """Work out how the owner stands now, and drop what that makes void."""
        slots = self.lattice.owners[owner]
        burial = slots.get(DEAD)
        if burial is not None and burial.incarnation < owner_incarnation(slots):
            self.lattice.drop(owner, DEAD)
            self._refuted[owner] = (self._refuted.get(owner, ("", 0.0))[0], now_s)
        standing = self.standings[owner] = standing_of(slots)
        if standing.status is Status.LEFT:
            for space in _WITHDRAWN_BY_LEAVING:
                slot = slots.get(space)
                if slot is not None and slot.incarnation <= standing.incarnation:
                    self.lattice.drop(owner, space)
        if standing.status is Status.ALIVE:
            self._gone.pop(owner, None)
        else:
            self._gone.setdefault(owner, standing.since_s)

    def _forget(self, owner: str) -> None:
        self.lattice.drop_owner(owner)
        for table in (self.standings, self._gone, self._flow, self._refuted):
            table.pop(owner, None)

    def _flows(self, owner: str, now_s: float) -> bool:
        """A token bucket for each owner."""
        left, since_s = self._flow.get(owner, (FLOOD_BURST, now_s))
        left = min(FLOOD_BURST, left + (now_s - since_s) * FLOOD_PER_S)
        if left < 1:
            return False
        if owner in self.lattice.owners:
            self._flow[owner] = (left - 1, now_s)
        return True
