"""What a member wants done, and which of its questions are open."""

from __future__ import annotations

from meshd.mesh.bus import Ask, Effect, Put
from meshd.mesh.messages import Question, encode


class Outbox:
    """:ivar connected: whether there is a session; without one nothing goes out."""

    def __init__(self) -> None:
        self.connected = False
        self._effects: list[Effect] = []
        self._open: dict[int, tuple[str, str]] = {}
        self._number = 0

    def put(self, raw: bytes) -> None:
        if self.connected:
            self._effects.append(Put(raw))

    def ask(self, kind: str, node: str, question: Question, timeout_s: float) -> None:
        self._number += 1
        self._open[self._number] = (kind, node)
        self._effects.append(Ask(self._number, node, encode(question), timeout_s))

    def answered(self, number: int) -> tuple[str, str] | None:
        """Kind and target of an open question, which is closed by this."""
        return self._open.pop(number, None)

    @property
    def open_count(self) -> int:
        return len(self._open)

    def forget(self) -> None:
        """The session is gone, and with it every answer."""
        self._open.clear()

    def drain(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
