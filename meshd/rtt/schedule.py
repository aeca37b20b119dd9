"""Whom to probe, and when: pure. At most one packet a second, fewer while nothing changes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

BUDGET_S = 1.0
"""Between two packets of this node, whomever they go to."""
FIRST_INTERVAL_S = 1.0
MOVED_INTERVAL_S = 4.0
MAX_INTERVAL_S = 300.0
GIVE_UP_AFTER = 5
NEAREST = 4
EPOCH_S = 3600.0
"""One peer that nobody needs is looked at for so long, then another."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One peer's place in the schedule.

    :ivar losses: probes in a row without an answer. :ivar count: probes so far.
    """

    due_s: float
    interval_s: float = FIRST_INTERVAL_S
    losses: int = 0
    count: int = 0


def sent(turn: Turn, now_s: float) -> Turn:
    """Not due again before its answer, or that there is none, has had time to move it."""
    due_s = now_s + max(turn.interval_s, MOVED_INTERVAL_S)
    return replace(turn, due_s=due_s, count=turn.count + 1)


def answered(turn: Turn, now_s: float, *, expected: bool) -> Turn:
    """An answer that says nothing new doubles the interval; another one shortens it."""
    interval_s = turn.interval_s * 2 if expected else min(turn.interval_s, MOVED_INTERVAL_S)
    interval_s = min(interval_s, MAX_INTERVAL_S)
    return replace(turn, interval_s=interval_s, due_s=now_s + interval_s, losses=0)


def lost(turn: Turn, now_s: float) -> Turn:
    """No answer: look again soon, and after some of these ever more rarely."""
    losses = turn.losses + 1
    interval_s = (
        MOVED_INTERVAL_S if losses <= GIVE_UP_AFTER else min(turn.interval_s * 2, MAX_INTERVAL_S)
    )
    return replace(turn, interval_s=interval_s, due_s=now_s + interval_s, losses=losses)


@dataclass(frozen=True, slots=True)
class Choice:
    """The peers to probe, most wanted first; nobody stands in two places.

    :ivar others: by rendezvous hashing of (me, peer): steady as peers come and go, and the mesh's
        nodes choose evenly among each other.
    :ivar explored: one more, another every `EPOCH_S`, so that near ones are found.
    """

    needed: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    explored: tuple[str, ...] = ()

    @property
    def peers(self) -> tuple[str, ...]:
        return (*self.needed, *self.near, *self.others, *self.explored)


def next_peer(choice: Choice, turns: Mapping[str, Turn], now_s: float) -> str | None:
    """Whose turn it is: needed ones first, then near ones; among equals the longest overdue."""
    for group in (choice.needed, choice.near, (*choice.others, *choice.explored)):
        due = [peer for peer in group if turns[peer].due_s <= now_s]
        if due:
            return min(due, key=lambda peer: turns[peer].due_s)
    return None


def choose(
    me: str, peers: Iterable[str], needed: frozenset[str], nearest: Iterable[str], epoch: int
) -> Choice:
    """Needed ones, O(log n) others, the nearest of the rest, and one that is explored.

    :param nearest: all whose distance is known, nearest first.
    """
    known = set(peers) - {me}
    wanted = needed & known
    by_weight = sorted(known - wanted, key=lambda peer: (_weight(f"{me}/{peer}"), peer))
    others = by_weight[: others_count(len(known))]
    near = [peer for peer in nearest if peer in known - wanted - set(others)][:NEAREST]
    rest = known - wanted - set(others) - set(near)
    explored = min(rest, key=lambda peer: (_weight(f"{me}/{epoch}/{peer}"), peer), default=None)
    return Choice(
        tuple(sorted(wanted)), tuple(near), tuple(others), (explored,) if explored else ()
    )


def others_count(peers: int) -> int:
    """2 + log2(n), rounded up."""
    return 2 + math.ceil(math.log2(peers)) if peers > 1 else 2


def epoch_of(now_s: float) -> int:
    return math.floor(now_s / EPOCH_S)


def address_index(turn: Turn, count: int, measured: Callable[[int], bool], best: int) -> int:
    """Which of a peer's addresses is next: each once, then the best, and now and then another.

    After a loss the next one is tried, so that a peer that moved is found.
    """
    if count <= 1:
        return 0
    unmeasured = [index for index in range(count) if not measured(index)]
    if turn.losses or (unmeasured and turn.count < 2 * count):
        return turn.count % count
    if turn.count % 8 == 0:
        return (turn.count // 8) % count
    return best


def _weight(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
