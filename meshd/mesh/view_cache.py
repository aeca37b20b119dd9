"""The view as it was last worked out, and which nodes changed since."""

from __future__ import annotations

from collections.abc import Callable

from meshd.mesh.absences import Absences
from meshd.mesh.intake import Intake
from meshd.mesh.lattice import mark_of
from meshd.mesh.record import NodeRecord
from meshd.mesh.record_codec import BadRecordError
from meshd.mesh.view import MemberView, MeshView, Status

Decode = Callable[[bytes, str], NodeRecord]


class ViewCache:
    def __init__(self, intake: Intake, absences: Absences, decode: Decode) -> None:
        self._intake = intake
        self._absences = absences
        self._decode = decode
        self._touched: set[str] = set()
        self._members: dict[str, MemberView] = {}
        self._dead: dict[str, NodeRecord] = {}
        self._marks: dict[str, int] = {}
        self._raw: dict[str, bytes] = {}
        self._digest = 0
        self._view = MeshView(me=intake.me)

    @property
    def changed(self) -> bool:
        """Whether `view` may be another than last time."""
        return bool(self._touched)

    def touch(self, node: str) -> None:
        self._touched.add(node)

    def view(self) -> MeshView:
        if self._touched:
            before = self._digest
            for node in self._touched:
                self._renew(node)
            self._touched.clear()
            if self._digest != before:
                ordered = tuple(map(self._members.__getitem__, sorted(self._members)))
                dead = tuple(map(self._dead.__getitem__, sorted(self._dead)))
                self._view = MeshView(self._intake.me, ordered, self._digest, dead)
        return self._view

    def _renew(self, node: str) -> None:
        self._digest ^= self._marks.pop(node, 0)
        old = self._members.pop(node, None)
        buried = self._dead.pop(node, None)
        found = self._member(node, old.record if old else buried)
        if found is None:
            self._raw.pop(node, None)
            return
        member, version = found
        if member.status is Status.DEAD:
            self._dead[node] = member.record
        else:
            self._members[node] = member
        mark = mark_of(
            node.encode(), b"%d %d %s" % (member.incarnation, version, member.status.encode())
        )
        self._marks[node] = mark
        self._digest ^= mark

    def _member(self, node: str, old: NodeRecord | None) -> tuple[MemberView, int] | None:
        """None for a node that has left, or whose record nobody can read."""
        intake = self._intake
        standing = intake.standing(node)
        slot = intake.lattice.get(node, "rec")
        if slot is None or node in intake.revocations:
            return None
        if node == intake.me:
            incarnation, status = intake.incarnation, Status.ALIVE
        elif standing.status is Status.DEAD:
            incarnation, status = standing.incarnation, Status.DEAD
        elif standing.status is not Status.ALIVE:
            return None
        else:
            incarnation = standing.incarnation
            status = Status.SUSPECT if self._absences.suspects(node) else Status.ALIVE
        if old is not None and self._raw.get(node) is slot.raw:
            return MemberView(node, incarnation, status, old), slot.version
        try:
            record = self._decode(slot.payload, node)
        except BadRecordError:
            return None
        self._raw[node] = slot.raw
        return MemberView(node, incarnation, status, record), slot.version
