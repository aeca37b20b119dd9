"""What every node says, by owner and slot: a map that all copies of it can only agree on.

A slot holds the greatest (incarnation, version, mark) ever put there, so that the order of arrival,
repetition and loss make no difference to where copies end. Slots are the namespaces of entries,
``dead`` for a burial and ``rev`` for a revocation. Digests: the XOR of the marks, by 64 buckets of
owners, kept up with every change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from zlib import crc32

from meshd.mesh.messages import BUCKETS, Mark, Summary

OWNERS_MAX = 4096
TOTAL_MAX_BYTES = 128 * 1024 * 1024

DEAD = "dead"
REVOKED = "rev"


@dataclass(frozen=True, slots=True)
class Slot:
    """:ivar raw: as it travels. :ivar payload: an entry's, empty for the rest.

    :ivar born_s: when its owner said it, on our clock.
    """

    incarnation: int
    version: int
    raw: bytes
    payload: bytes
    mark: int
    born_s: float

    @property
    def order(self) -> tuple[int, int, int]:
        return self.incarnation, self.version, self.mark


def mark_of(*parts: bytes) -> int:
    """64 bits that stand for some content (BLAKE2b, RFC 7693)."""
    return int.from_bytes(blake2b(b"\0".join(parts), digest_size=8).digest(), "big")


def bucket_of(node: str) -> int:
    return crc32(node.encode()) % BUCKETS


class Lattice:
    """:ivar owners: slots by owner. Read it; change it through `put` and the two `drop`s only.

    :ivar buckets: digest of each bucket. :ivar root: of all. :ivar size_bytes: of all raw items.
    """

    def __init__(self) -> None:
        self.owners: dict[str, dict[str, Slot]] = {}
        self.buckets = [0] * BUCKETS
        self.root = 0
        self.size_bytes = 0
        self._members: list[dict[str, None]] = [{} for _ in range(BUCKETS)]

    def get(self, owner: str, space: str) -> Slot | None:
        slots = self.owners.get(owner)
        return None if slots is None else slots.get(space)

    def newer(self, owner: str, space: str, order: tuple[int, int, int]) -> bool:
        """Whether something of this order would change the slot."""
        slot = self.get(owner, space)
        return slot is None or order > slot.order

    def full(self, owner: str, size_bytes: int) -> bool:
        return self.size_bytes + size_bytes > TOTAL_MAX_BYTES or (
            owner not in self.owners and len(self.owners) >= OWNERS_MAX
        )

    def put(self, owner: str, space: str, slot: Slot) -> bool:
        """Merge; False when what is there is as new or newer, or nothing more may be kept."""
        if not self.newer(owner, space, slot.order) or self.full(owner, len(slot.raw)):
            return False
        slots = self.owners.get(owner)
        if slots is None:
            slots = self.owners[owner] = {}
            self._members[bucket_of(owner)][owner] = None
        old = slots.get(space)
        if old is not None:
            self._count(owner, space, old, -1)
        slots[space] = slot
        self._count(owner, space, slot, 1)
        return True

    def drop(self, owner: str, space: str) -> None:
        slots = self.owners.get(owner, {})
        slot = slots.pop(space, None)
        if slot is not None:
            self._count(owner, space, slot, -1)
            if not slots:
                self.drop_owner(owner)

    def drop_owner(self, owner: str) -> None:
        for space, slot in self.owners.pop(owner, {}).items():
            self._count(owner, space, slot, -1)
        self._members[bucket_of(owner)].pop(owner, None)

    def in_bucket(self, bucket: int) -> Iterator[str]:
        return iter(self._members[bucket])

    def summary(self, owner: str) -> Summary:
        return Summary(
            owner,
            [
                Mark(space, slot.incarnation, slot.version, slot.mark)
                for space, slot in self.owners.get(owner, {}).items()
            ],
        )

    def lacking(self, summary: Summary) -> tuple[list[str], list[str]]:
        """Slots in which the author of the summary is behind us, and those in which we are."""
        slots = self.owners.get(summary.node, {})
        theirs = {mark.space: (mark.incarnation, mark.version, mark.mark) for mark in summary.marks}
        behind = [
            space
            for space, slot in slots.items()
            if space not in theirs or slot.order > theirs[space]
        ]
        ahead = [
            space
            for space, order in theirs.items()
            if space not in slots or order > slots[space].order
        ]
        return behind, ahead

    def differing(self, buckets: Iterable[int]) -> list[int]:
        """The buckets whose digests are not equal to ours."""
        return [
            number
            for number, (ours, theirs) in enumerate(zip(self.buckets, buckets, strict=True))
            if ours != theirs
        ]

    def _count(self, owner: str, space: str, slot: Slot, sign: int) -> None:
        digest = mark_of(
            owner.encode(),
            space.encode(),
            b"%d %d %d" % (slot.incarnation, slot.version, slot.mark),
        )
        self.buckets[bucket_of(owner)] ^= digest
        self.root ^= digest
        self.size_bytes += sign * len(slot.raw)
