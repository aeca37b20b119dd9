"""What each node saw of the others, and when: the same for every kind of node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

ALIVE, SUSPECT, GONE = "alive", "suspect", "gone"


@dataclass(frozen=True, slots=True)
class Sight:
    """:ivar at_s: CLOCK_MONOTONIC. :ivar mark: what the subject's record said last."""

    at_s: float
    observer: str
    subject: str
    status: str
    mark: int


@dataclass
class Observations:
    """:ivar now: by observer and subject, the last that was seen.

    :ivar all: in order of arrival.
    """

    now: dict[str, dict[str, Sight]] = field(default_factory=dict)
    all: list[Sight] = field(default_factory=list)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, sight: Sight) -> None:
        self.all.append(sight)
        self.now.setdefault(sight.observer, {})[sight.subject] = sight
        self._moved.set()

    def forget(self, observer: str) -> None:
        self.now.pop(observer, None)

    async def until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it became true in time."""
        deadline = time.monotonic() + timeout_s
        while not true():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), left_s)
            except TimeoutError:
                return true()
        return True

    def exact(self, names: Iterable[str], observers: Iterable[str] | None = None) -> bool:
        """Whether each observer sees exactly these, and all of them alive."""
        wanted = set(names)
        return all(
            {one.subject for one in self.now.get(observer, {}).values() if one.status == ALIVE}
            == wanted
            and not any(one.status == SUSPECT for one in self.now[observer].values())
            for observer in (wanted if observers is None else observers)
        )

    def first_s(
        self, observer: str, subject: str, since_s: float, true: Callable[[Sight], bool]
    ) -> float | None:
        """When the observer first saw that of the subject."""
        for sight in self.all:
            if (
                sight.at_s >= since_s
                and sight.observer == observer
                and sight.subject == subject
                and true(sight)
            ):
                return sight.at_s
        return None

    def by_all_s(
        self,
        observers: Iterable[str],
        subject: str,
        since_s: float,
        true: Callable[[Sight], bool],
    ) -> float | None:
        """How long it took until the last of the observers had seen it; None if one never did."""
        times = [self.first_s(observer, subject, since_s, true) for observer in observers]
        seen = [at for at in times if at is not None]
        return max(seen) - since_s if len(seen) == len(times) else None
