"""Who is up, as several sessions see it at once: while one of them sees a node, it is up.

A node changes its session by opening the new one before it closes the old, and for a moment the
new one has not heard of everybody. Pure.
"""

from __future__ import annotations


class TokenBoard:
    """`token` and `forget` return what changed for the whole: (node, up) pairs."""

    def __init__(self) -> None:
        self._seen: dict[object, set[str]] = {}
        self._up: set[str] = set()

    @property
    def up(self) -> frozenset[str]:
        return frozenset(self._up)

    def token(self, session: object, node: str, *, up: bool) -> list[tuple[str, bool]]:
        """A session saw a node come or go."""
        seen = self._seen.setdefault(session, set())
        if up:
            seen.add(node)
        else:
            seen.discard(node)
        return self._changes()

    def forget(self, session: object) -> list[tuple[str, bool]]:
        """A session is over, and what only it saw is seen no more."""
        self._seen.pop(session, None)
        return self._changes()

    def clear(self) -> None:
        """Nothing is known any more, which is not to say that anybody went."""
        self._seen.clear()
        self._up.clear()

    def _changes(self) -> list[tuple[str, bool]]:
        now = set[str]().union(*self._seen.values())
        changes = [(node, True) for node in sorted(now - self._up)]
        changes += [(node, False) for node in sorted(self._up - now)]
        self._up = now
        return changes
