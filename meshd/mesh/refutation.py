"""How often a node answers those who bury it, or who speak in its name."""

from __future__ import annotations

import math

REFUTATIONS_BURST = 5.0
REFUTATION_EVERY_S = 10.0
CLASHES_MAX = 3
CLASH_WINDOW_S = 60.0
CLASH_MEMORY_S = 300.0
ECHOES_MAX = 3
ECHO_AFTER_S = 30.0

_TWIN = (
    "another node runs with this node's identity (a copied disk or state folder); "
    "remove the identity folder of one of them, so that it joins as a new node"
)


class Refutation:
    """:ivar due_s: when to refute next, infinite when nothing is to be refuted."""

    def __init__(self, now_s: float) -> None:
        self.due_s = math.inf
        self._left = REFUTATIONS_BURST
        self._counted_s = now_s
        self._rises: list[float] = []
        self._risen_s = now_s
        self._echoes = 0
        self._twin_s = -math.inf

    def wanted(self, now_s: float) -> None:
        """Somebody buried us."""
        self._refill(now_s)
        wait_s = 0.0 if self._left >= 1 else (1 - self._left) * REFUTATION_EVERY_S
        self.due_s = min(self.due_s, now_s + wait_s)

    def done(self, now_s: float) -> None:
        self._refill(now_s)
        self._left = max(0.0, self._left - 1)
        self.due_s = math.inf

    def clash(self, now_s: float) -> bool:
        """An entry of ours that we did not write, as new as we are: from before a disk was
        restored, or from a twin. Whether to rise above it.

        Rising more than `CLASHES_MAX` times a minute means that somebody else rises too.
        """
        self._rises = [at_s for at_s in self._rises if now_s - at_s < CLASH_WINDOW_S]
        if len(self._rises) >= CLASHES_MAX:
            self._twin_s = now_s
            return False
        if now_s - self._twin_s < CLASH_MEMORY_S:
            self._twin_s = now_s
            if self._rises:
                return False
        self._rises.append(now_s)
        self._risen_s = now_s
        self._echoes = 0
        return True

    def echo(self, now_s: float) -> None:
        """Somebody speaks in our name below our incarnation. Leftovers of an earlier life come
        soon after a start or a rise; what still comes later comes from a twin.
        """
        if now_s - self._risen_s < ECHO_AFTER_S:
            return
        self._echoes += 1
        if self._echoes >= ECHOES_MAX:
            self._twin_s = now_s

    def problem(self, now_s: float) -> str:
        return _TWIN if now_s - self._twin_s < CLASH_MEMORY_S else ""

    def _refill(self, now_s: float) -> None:
        passed_s = now_s - self._counted_s
        self._left = min(REFUTATIONS_BURST, self._left + passed_s / REFUTATION_EVERY_S)
        self._counted_s = now_s
