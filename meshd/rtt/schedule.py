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
"""So often the peers probed for no need of ours change, so that near ones are found."""


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


def next_peer(
    order: Iterable[str], turns: Mapping[str, Turn], needed: frozenset[str], now_s: float
) -> str | None:
    """Whose turn it is: needed peers before others, in each kind the longest overdue.

    :param order: the peers that are probed at all; earlier ones win ties.
    """
    due = [peer for peer in order if turns[peer].due_s <= now_s]
    return min(due, key=lambda peer: (peer not in needed, turns[peer].due_s), default=None)


def chosen(
    me: str,
    peers: Iterable[str],
    needed: frozenset[str],
    nearest: Iterable[str],
    epoch: int,
) -> tuple[str, ...]:
    """The peers to probe, most wanted first: needed, the nearest known, and O(log n) others.

    The others are the highest by rendezvous hashing of (me, epoch, peer): as peers come and go at
    most that many places change, and the mesh's nodes choose evenly among each other.
    """
    known = set(peers) - {me}
    by_distance = [peer for peer in nearest if peer in known]
    wanted = [*(peer for peer in by_distance if peer in needed), *sorted(needed & known)]
    first = dict.fromkeys([*wanted, *by_distance[:NEAREST]])
    others = sorted(known - first.keys(), key=lambda peer: (_weight(me, epoch, peer), peer))
    return (*first, *others[: others_count(len(known))])


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


def _weight(me: str, epoch: int, peer: str) -> bytes:
    return hashlib.blake2b(f"{me}/{epoch}/{peer}".encode(), digest_size=8).digest()
