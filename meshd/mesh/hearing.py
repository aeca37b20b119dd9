"""What one or two sessions hear, as one: for the `Member`, which knows of one mesh only."""

from __future__ import annotations

from collections.abc import Callable

from meshd.mesh.member import Member
from meshd.mesh.token_board import TokenBoard


class Ear:
    """The `Listener` of one session."""

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing

    def heard(self, data: bytes) -> None:
        self._hearing.heard(data)

    def asked(self, data: bytes) -> bytes | None:
        return self._hearing.asked(data)

    def token(self, node: str, *, up: bool) -> None:
        self._hearing.token(self, node, up=up)

    def cut(self, core: str) -> None:
        """The session has lost its link to the mesh: what it misses now says nothing, but of the
        core that was at the other end.
        """
        self._hearing.lost(core)
        self._hearing.close(self)
        self._hearing.forget(self)

    def back(self) -> None:
        """It has one again."""
        self._hearing.begin(self)


class Hearing:
    """:param moved: called after anything that reached the member."""

    def __init__(self, member: Member, moved: Callable[[], None]) -> None:
        self._member, self._moved = member, moved
        self._board = TokenBoard()
        self._ears: set[Ear] = set()
        self._lost: set[str] = set()

    def ear(self) -> Ear:
        return Ear(self)

    def begin(self, ear: Ear) -> None:
        """A session hears the mesh, maybe beside another."""
        first = not self._ears
        self._ears.add(ear)
        self._member.session_up()
        if first:
            self._tell([(node, True) for node in sorted(self._board.up)])
            self._tell([(node, False) for node in sorted(self._lost - self._board.up)])
            self._lost.clear()
        self._moved()

    def close(self, ear: Ear) -> None:
        """It hears no more. What it saw holds until `forget`, if another session goes on."""
        self._ears.discard(ear)
        if not self._ears:
            self._board.clear()
            self._member.session_down()
            self._moved()

    def lost(self, core: str) -> None:
        """The link to this one broke; unless it shows itself, it is missed."""
        self._lost.add(core)

    def forget(self, ear: Ear) -> None:
        """What only it saw is seen no more."""
        self._tell(self._board.forget(ear))

    def heard(self, data: bytes) -> None:
        self._member.heard(data)
        self._moved()

    def asked(self, data: bytes) -> bytes | None:
        answer = self._member.asked(data)
        self._moved()
        return answer

    def token(self, ear: Ear, node: str, *, up: bool) -> None:
        changes = self._board.token(ear, node, up=up)
        if not up and node not in self._board.up:
            # Also when it went while we were cut off, so that the board knows nothing of it.
            changes = [(node, False)]
        if self._ears:
            self._tell(changes)

    def _tell(self, changes: list[tuple[str, bool]]) -> None:
        for node, up in changes:
            self._member.token(node, up=up)
        if changes:
            self._moved()
