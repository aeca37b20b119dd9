"""What is wished of a workshop, how far that is, and when it is tried again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from meshd.experts.ranking import Ranking
from meshd.experts.wish import RankingWish, ShardWish, WorkStage, WorkState

RETRY_FIRST_S = 60.0
RETRY_LAST_S = 3600.0
Wish = RankingWish | ShardWish
_ANY = Ranking("", "", 0, ())


def retry_s(failures: int) -> float:
    """
    >>> [retry_s(count) for count in (1, 2, 3, 9)]
    [60.0, 120.0, 240.0, 3600.0]
    """
    return min(RETRY_FIRST_S * 2.0 ** min(failures - 1, 30), RETRY_LAST_S)


@dataclass(slots=True)
class Job:
    """:ivar due: what is on disk is to be looked at. :ivar looked_s: when it last was.

    :ivar next_s: not to be tried before, on our clock. :ivar made: just now, and to be found.
    :ivar in_vain: it failed where it was for this node to compute.
    """

    wish: Wish
    state: WorkState = field(default_factory=lambda: WorkState(WorkStage.WAITING))
    due: bool = True
    looked_s: float = 0.0
    failures: int = 0
    next_s: float = 0.0
    began_s: float = 0.0
    made: bool = False
    in_vain: bool = False

    @property
    def key(self) -> str:
        return self.wish.key if isinstance(self.wish, ShardWish) else self.wish.fingerprint

    @property
    def told(self) -> tuple[str, WorkStage, str, int]:
        """What others are told of: they know tenths."""
        return self.key, self.state.stage, self.state.detail, int(self.state.progress * 10)


def kin(wish: Wish) -> Wish:
    """What it is that is wished, whoever has it meanwhile and whoever makes it."""
    if isinstance(wish, RankingWish):
        return replace(wish, holders=(), computes=False, wanted="")
    # Its key says by which ranking it was chosen; a newer one may be what is here.
    return replace(wish, holders=(), computes=False, ranking=_ANY)


def news(old: Wish, new: Wish, *, in_vain: bool) -> bool:
    """Whether what could not be done may now be possible.

    :param in_vain: to compute it has failed. Its turn to do so passes between nodes that all fail,
        and when it comes back is no reason to hurry.
    """
    if isinstance(old, RankingWish) and isinstance(new, RankingWish) and old.wanted != new.wanted:
        return True
    turn = new.computes and not old.computes and not in_vain
    return turn or bool(set(new.holders) - set(old.holders))


def other_way(old: Wish, new: Wish) -> bool:
    """Whether what is under way for the old one is of no use for the new one."""
    if not (isinstance(old, RankingWish) and isinstance(new, RankingWish)):
        return False
    fetches = bool(new.holders) and old.computes and not new.computes
    return old.wanted != new.wanted or fetches


def name(wish: Wish) -> str:
    return "a shard" if isinstance(wish, ShardWish) else "a ranking"
