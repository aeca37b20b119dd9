"""What the workshop works with: folders, threads, and each step as something to wait for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping

from meshd.experts.hold import Hold
from meshd.experts.logits_store import LogitsStore
from meshd.experts.ranking import Ranking
from meshd.experts.ranking_shelf import RankingShelf
from meshd.experts.ranking_work import RankingWork, Show
from meshd.experts.shard_shelf import ShardShelf
from meshd.experts.shard_work import Found, ShardWork
from meshd.experts.stoppable_thread import StoppableThread
from meshd.experts.whole_logits import WholeLogits
from meshd.experts.wish import RankingWish, Shard, ShardWish
from meshd.experts.work_tools import Tools
from meshd.paths import Paths

# What was half counted for so long is of a model or a text that nobody asks for any more.
COUNTING_S = 30 * 86_400
# A disk of 1 TB with a fifth of shards is read through in less than two hours, once a day.
VERIFY_EVERY_S = 86_400
VERIFY_BYTES_S = 32 << 20


class _StopError(Exception):
    """Something else is to do."""


class Bench:
    """:param clock: monotonic seconds; ``unix`` those since 1970."""

    def __init__(
        self,
        paths: Paths,
        tools: Tools,
        hold: Hold,
        *,
        unix: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        verify_every_s: float = VERIFY_EVERY_S,
        verify_bytes_s: float = VERIFY_BYTES_S,
    ) -> None:
        self.hold = hold
        self._paths = paths
        self._unix, self._clock = unix, clock
        self._verify_every_s, self._verify_bytes_s = verify_every_s, verify_bytes_s
        self._keep: frozenset[str] = frozenset()
        # To look is a moment's work, and does not wait until hours of other work are done.
        self._looking = StoppableThread("experts-look")
        self._working = StoppableThread("experts-work")
        self._rankings = RankingShelf(paths.experts / "rankings")
        self._shelf = ShardShelf(paths.shards, paths.experts / "shards", tools.disk, unix)
        self._logits = LogitsStore(paths.experts / "logits", tools.disk, unix)
        self._counting = paths.experts / "counting"
        self._ranking_work = RankingWork(tools, self._rankings, self._counting, self._working, hold)
        self._certificates = paths.experts / "certificates"
        self._shard_work = ShardWork(
            tools,
            self._shelf,
            self._certificates,
            WholeLogits(tools, self._logits, self._working, hold),
            self._working,
            hold,
            lambda: self._keep,
        )

    def keep(self, keys: frozenset[str]) -> None:
        """Shards of these keys stay, and logits of these models."""
        self._keep = keys

    def ranking_file(self, ranking: Ranking) -> str:
        return str(self._rankings.path(ranking))

    async def open(self) -> dict[str, Shard]:
        """Make the folders, sweep what a killed process left, and find what is whole.

        :raises OSError: that is not possible.
        """

        def work(_: Callable[[], bool]) -> dict[str, Shard]:
            self._paths.experts.mkdir(parents=True, exist_ok=True)
            self._rankings.folder.mkdir(exist_ok=True)
            self._counting.mkdir(exist_ok=True)
            self._certificates.mkdir(exist_ok=True)
            self._shelf.make()
            self._logits.open()
            for folder in self._counting.iterdir():
                if self._unix() - folder.stat().st_mtime >= COUNTING_S:
                    shutil.rmtree(folder, ignore_errors=True)
            return self._shard_work.all()

        return await self._looking.run(work)

    async def shards_here(self) -> dict[str, Shard]:
        return await self._looking.run(lambda _: self._shard_work.all())

    async def logits_here(self) -> Mapping[str, Mapping[str, str]]:
        """Files by model and text."""
        return await self._looking.run(lambda _: self._logits.all())

    async def look_ranking(self, wish: RankingWish) -> tuple[Ranking | None, bool]:
        return await self._looking.run(lambda _: self._ranking_work.look(wish))

    async def look_shard(self, wish: ShardWish) -> Found:
        return await self._looking.run(lambda _: self._shard_work.look(wish))

    async def make_ranking(self, wish: RankingWish, show: Show, failures: int) -> None:
        await self._ranking_work.make(wish, show, failures)

    async def make_shard(self, wish: ShardWish, show: Show, failures: int) -> None:
        await self._shard_work.make(wish, show, failures)

    async def tidy(self) -> None:
        """What nobody needs goes, and what was not looked at for a day is read."""

        def work(stopped: Callable[[], bool]) -> None:
            self._shelf.tidy(self._keep)
            for note in list(self._shelf.notes()):
                if note.verified_s + self._verify_every_s <= self._unix():
                    began_s, read = self._clock(), 0

                    def step(count: int, began_s: float = began_s) -> None:
                        nonlocal read
                        read += count
                        while read / self._verify_bytes_s > self._clock() - began_s:
                            if stopped():
                                raise _StopError
                            time.sleep(0.05)
                        if stopped():
                            raise _StopError

                    self._shelf.verify(note, step)

        try:
            await self._working.run(work)
        except _StopError:
            return

    def close(self) -> None:
        self._looking.close()
        self._working.close()
