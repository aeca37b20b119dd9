"""Anti-entropy: one small question when all is equal, the differing buckets only when it is not.

The asker drives: `Compare` of the roots; on a difference `Sync` with what it has in the differing
buckets; the answer brings what it lacks and names what the other lacks, which goes in a `Give`;
and again, until equal or nothing new came. The one who answers keeps no state.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from meshd.mesh.intake import Intake, News
from meshd.mesh.messages import (
    BUCKETS,
    DOUBTS_MAX,
    ROOM_BYTES,
    Answer,
    Batch,
    Compare,
    Differ,
    Give,
    Item,
    Question,
    Same,
    Summary,
    Sync,
    Taken,
    Want,
)

ROUND_S = 10.0
CORE_ROUND_S = 2.0
CORE_ROUNDS = 4
"""After a change cores compare with each other at once, one after the other: Zenoh loses puts
between them now and then, and all others hear what they hear.
"""
QUIET_ROUND_S = 30.0
QUIET_AFTER_S = 60.0
RETRY_S = (0.5, 1.0, 2.0, 4.0)
YOUNG_S = (1.0, 2.0, 4.0)
"""Pauses after a session began or nodes came back: where all do at once, whoever is asked first
knows little itself.
"""
TRIPS_MAX = 400
TIMEOUT_S = 2.0

_SUMMARY_ROOM_BYTES = 40 * 1024
_SUMMARY_BYTES = 24
_MARK_BYTES = 20
_WANTS_MAX = 512


def answer(
    intake: Intake, question: Compare | Sync | Give, doubts: list[str], now_s: float
) -> tuple[Answer, list[News]]:
    """The reply to a question of a comparison, and what the question itself brought."""
    lattice = intake.lattice
    if isinstance(question, Compare):
        if question.root == lattice.root:
            return Same(doubts), []
        return Differ(list(lattice.buckets), doubts), []
    if isinstance(question, Give):
        news = take(intake, question.items, now_s)
        return Taken(len(news)), news
    return _batch(intake, question, now_s), []


def take(intake: Intake, items: Iterable[Item], now_s: float) -> list[News]:
    found = (intake.absorb(item.raw, now_s, item.age_s, put=False) for item in items)
    return [news for news in found if news is not None]


def _batch(intake: Intake, question: Sync, now_s: float) -> Batch:
    lattice = intake.lattice
    items: list[Item] = []
    wants: list[Want] = []
    room = ROOM_BYTES
    told = {summary.node: summary for summary in question.summaries}
    # Whom only the asker knows is looked at first: it is not in our buckets.
    nodes = [node for node in told if node not in lattice.owners]
    for bucket in dict.fromkeys(question.buckets):
        nodes += lattice.in_bucket(bucket)
    for node in nodes:
        behind, ahead = lattice.lacking(told.get(node) or Summary(node, []))
        if ahead:
            marks = {mark.space: mark.incarnation for mark in told[node].marks}
            for space in ahead:
                if not intake.useless(node, space, marks[space]):
                    wants.append(Want(node, space))
                    room -= len(node) + 16
        for item in intake.items(node, behind, now_s):
            room -= len(item.raw) + 16
            if room < 0 and items:
                return Batch(items, wants[:_WANTS_MAX], more=True)
            items.append(item)
        if len(wants) >= _WANTS_MAX:
            return Batch(items, wants[:_WANTS_MAX], more=True)
    return Batch(items, wants, more=False)


class Comparison:
    """The asker's side, one at a time.

    :ivar next_s: when to begin the next one. :ivar running: an answer is awaited.
    :ivar unanswered: questions in a row that nobody answered: the session may be dead.
    """

    def __init__(self, intake: Intake, rng: Random, now_s: float) -> None:
        self._intake = intake
        self._rng = rng
        self.next_s = now_s
        self.running = False
        self.unanswered = 0
        self._begun_s = -1e9
        self._moved_s = now_s
        self._trips = 0
        self._buckets: list[int] = []
        self._progress = False
        self._more = False
        self._young = 0
        self._rounds = 0

    def session_began(self, now_s: float) -> None:
        self.next_s = now_s
        self._young = 0

    def moved(self, now_s: float, *, core: bool) -> None:
        """Something in the mesh changed: compare at the usual pace for a while, cores soon."""
        self._moved_s = now_s
        self._rounds = CORE_ROUNDS - 1 if core else 0
        pace_s = CORE_ROUND_S if core else ROUND_S
        self.next_s = min(self.next_s, now_s + pace_s * self._rng.uniform(0.9, 1.1))

    def hurry(self, now_s: float, spread_s: float) -> None:
        """Compare soon: what was apart may have come together."""
        self._young = min(self._young, 1)
        earliest = max(now_s, self._begun_s + 1.0)
        self.next_s = min(self.next_s, earliest + self._rng.uniform(0, spread_s))

    def begin(self, now_s: float, doubts: list[str]) -> Question:
        self.running = True
        self._begun_s = now_s
        self._trips = 0
        if len(self._intake.lattice.owners) <= 1:
            # A newcomer has nothing to compare.
            return self._sync(list(range(BUCKETS)))
        return self._compare(doubts)

    def heard(
        self, reply: Answer | None, now_s: float
    ) -> tuple[Question | None, list[News], list[str]]:
        """What to ask next of the same node, what the reply brought, and whom it doubts."""
        self._trips += 1
        if reply is None:
            self._end(now_s, answered=False)
            return None, [], []
        self.unanswered = 0
        if isinstance(reply, Differ):
            buckets = self._intake.lattice.differing(reply.buckets)
            if buckets and self._trips < TRIPS_MAX:
                self._rng.shuffle(buckets)
                return self._sync(buckets), [], reply.doubts[:DOUBTS_MAX]
            self._end(now_s)
            return None, [], reply.doubts[:DOUBTS_MAX]
        if isinstance(reply, Batch):
            news = take(self._intake, reply.items, now_s)
            self._progress = bool(news)
            self._more = reply.more
            give = self._give(reply.wants, now_s)
            return give or self._go_on(now_s), news, []
        if isinstance(reply, Taken):
            self._progress = self._progress or reply.fresh > 0
            return self._go_on(now_s), [], []
        self._end(now_s)
        return None, [], reply.doubts[:DOUBTS_MAX] if isinstance(reply, Same) else []

    def _go_on(self, now_s: float) -> Question | None:
        """Nothing new, though the roots differ: what differs is refused here or there."""
        if not self._progress or self._trips >= TRIPS_MAX:
            self._end(now_s)
            return None
        return self._sync(self._buckets) if self._more else self._compare([])

    def _compare(self, doubts: list[str]) -> Compare:
        return Compare(self._intake.lattice.root, doubts[:DOUBTS_MAX])

    def _sync(self, buckets: list[int]) -> Sync:
        lattice = self._intake.lattice
        taken: list[int] = []
        summaries: list[Summary] = []
        room = _SUMMARY_ROOM_BYTES
        for bucket in buckets:
            here = [lattice.summary(node) for node in lattice.in_bucket(bucket)]
            room -= sum(_SUMMARY_BYTES + _MARK_BYTES * len(one.marks) for one in here)
            if room < 0 and taken:
                break
            taken.append(bucket)
            summaries += here
        self._buckets = taken
        return Sync(taken, summaries)

    def _give(self, wants: list[Want], now_s: float) -> Give | None:
        items: list[Item] = []
        room = ROOM_BYTES
        asked: dict[str, list[str]] = {}
        for want in wants[:_WANTS_MAX]:
            asked.setdefault(want.node, []).append(want.space)
        for node, spaces in asked.items():
            for item in self._intake.items(node, spaces, now_s):
                room -= len(item.raw) + 16
                if room < 0 and items:
                    return Give(items)
                items.append(item)
        return Give(items) if items else None

    def _end(self, now_s: float, *, answered: bool = True) -> None:
        self.running = False
        if not answered:
            delay_s = RETRY_S[min(self.unanswered, len(RETRY_S) - 1)]
            self.unanswered += 1
        elif self._young < len(YOUNG_S):
            delay_s = YOUNG_S[self._young]
            self._young += 1
        elif self._rounds:
            self._rounds -= 1
            delay_s = CORE_ROUND_S
        else:
            intake = self._intake
            if now_s - self._moved_s > QUIET_AFTER_S:
                delay_s = QUIET_ROUND_S
            elif intake.tokens <= intake.standings.keys():
                delay_s = ROUND_S
            else:
                delay_s = YOUNG_S[-1]
        self.next_s = now_s + delay_s * self._rng.uniform(0.8, 1.2)
