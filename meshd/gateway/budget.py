"""How much of something was used lately: a sliding window, with a clock from outside.

The window is cut into 60 slots. What was used counts until its whole slot has left the window, so
that in no span of the period, wherever it begins, more than the limit is taken; a budget that ran
out comes back up to a sixtieth of the period later than it might.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from meshd.keys.quota import Quota

SLOTS = 60


@dataclass(frozen=True, slots=True)
class Standing:
    """:ivar remaining: 0 or more. :ivar reset_s: seconds until all of the limit is there again."""

    limit: int
    remaining: int
    reset_s: float


class Window:
    """What was taken within the period. All times in seconds of one monotonic clock."""

    __slots__ = ("_slot_s", "_slots", "_used", "quota")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._slot_s = quota.period_s / SLOTS
        self._slots: deque[tuple[int, int]] = deque()  # number of the slot, amount
        self._used = 0

    def take(self, amount: int, now_s: float) -> None:
        """Count it, whether or not there is room: an answer's tokens are known only afterwards."""
        self._forget(now_s)
        if amount <= 0:
            return
        slot = int(now_s // self._slot_s)
        if self._slots and self._slots[-1][0] >= slot:
            last, before = self._slots.pop()
            self._slots.append((last, before + amount))
        else:
            self._slots.append((slot, amount))
        self._used += amount

    def wait_s(self, now_s: float, amount: int = 1) -> float:
        """How long until there is room for so much, at most the limit; 0 when there is now."""
        self._forget(now_s)
        over = self._used + min(amount, self.quota.limit) - self.quota.limit
        for slot, taken in self._slots:
            if over <= 0:
                break
            over -= taken
            if over <= 0:
                return max(0.0, self._leaves_s(slot) - now_s)
        return 0.0

    def standing(self, now_s: float) -> Standing:
        self._forget(now_s)
        last_s = self._leaves_s(self._slots[-1][0]) - now_s if self._slots else 0.0
        return Standing(
            self.quota.limit, max(0, self.quota.limit - self._used), round(max(0.0, last_s), 3)
        )

    def history(self, now_s: float) -> list[tuple[float, int]]:
        """What counts still: how many seconds ago, and how much. At most 61 pairs."""
        self._forget(now_s)
        return [(max(0.0, now_s - slot * self._slot_s), amount) for slot, amount in self._slots]

    def remember(self, history: Iterable[tuple[float, int]], now_s: float) -> None:
        """Take up what `history` gave in an earlier life, oldest first; its ages as of now."""
        for age_s, amount in sorted(history, reverse=True):
            if 0 <= age_s <= self.quota.period_s + self._slot_s:
                self.take(amount, now_s - age_s)
        self._forget(now_s)

    def _leaves_s(self, slot: int) -> float:
        return (slot + 1) * self._slot_s + self.quota.period_s

    def _forget(self, now_s: float) -> None:
        while self._slots and self._leaves_s(self._slots[0][0]) <= now_s:
            self._used -= self._slots.popleft()[1]
