"""The workshop of a node: one wish after the other, in the background, when it is quiet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog

from meshd.experts.bench import Bench
from meshd.experts.ranking import Ranking
from meshd.experts.wish import RankingWish, Shard, ShardWish, WorkStage, WorkState
from meshd.experts.work_job import RETRY_FIRST_S, Job, Wish, kin, name, news, other_way, retry_s
from meshd.experts.work_tools import SAID, WaitingError, in_words
from meshd.shared_models import SharedExperts

_log = structlog.get_logger(__name__)

LOOK_S = 1.0
# A shard's file can be written to by whoever may, which nobody announces here.
LOOK_AGAIN_S = 30.0
TIDY_S = 3600.0
WISHES_MAX = 64


@dataclass(slots=True)
class _UnderWay:
    """:ivar job: None for what is done when there is nothing to do."""

    job: Job | None
    task: asyncio.Task[None]


class NodeWorkshop:
    """The `Workshop`. `want` must be called with a running event loop.

    :param changed: called on the loop when `states`, `rankings` or `shards` became others.
    :param share: told in a thread, whenever it changed, what other nodes may fetch here.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        changed: Callable[[], None] = lambda: None,
        share: Callable[[Mapping[str, SharedExperts]], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        look_s: float = LOOK_S,
    ) -> None:
        self._bench = bench
        self._changed = changed
        self._share = share
        self._clock = clock
        self._look_s = look_s
        self._jobs: dict[str, Job] = {}
        self._in_use: frozenset[str] = frozenset()
        self._rankings: dict[str, Ranking] = {}
        self._shards: dict[str, Shard] = {}
        self._texts: dict[str, frozenset[str]] = {}
        self._logits: Mapping[str, Mapping[str, str]] = {}
        self._shared: Mapping[str, SharedExperts] = {}
        self._said: object = None
        self._tidied_s: float | None = None
        self._opened = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._under_way: _UnderWay | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def want(
        self,
        rankings: tuple[RankingWish, ...],
        shards: tuple[ShardWish, ...],
        in_use: frozenset[str] = frozenset(),
    ) -> None:
        jobs: dict[str, Job] = {}
        wishes: tuple[Wish, ...] = (*rankings, *shards)
        for wish in wishes[:WISHES_MAX]:
            job = Job(wish)
            old = self._jobs.get(job.key)
            if old is not None and kin(old.wish) == kin(wish):
                if news(old.wish, wish, in_vain=old.in_vain):
                    old.due, old.next_s = True, 0.0
                    if old is self._current and other_way(old.wish, wish):
                        self._end()
                old.wish = wish
                job = old
            jobs[job.key] = job
        if self._current is not None and jobs.get(self._current.key) is not self._current:
            self._end()
        other = jobs != self._jobs
        self._jobs, self._in_use = jobs, in_use
        self._bench.keep(frozenset(jobs) | in_use)
        if self._task is None and jobs:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.create_task(self._run(), name="workshop of experts")
        if other:
            self._news.set()

    @property
    def looked(self) -> bool:
        return self._opened

    def rankings(self) -> Mapping[str, Ranking]:
        return self._rankings

    def shards(self) -> Mapping[str, Shard]:
        return self._shards

    def states(self) -> Mapping[str, WorkState]:
        return {key: job.state for key, job in self._jobs.items()}

    def logits(self) -> frozenset[str]:
        """Those whose logits are here on every text that is wished, or on any where none is."""
        return frozenset(
            one
            for one, files in self._logits.items()
            if files and self._texts.get(one, frozenset()) <= files.keys()
        )

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._bench.close()

    # -- inside ---------------------------------------------------------------------------------

    @property
    def _current(self) -> Job | None:
        return self._under_way.job if self._under_way is not None else None

    async def _run(self) -> None:
        try:
            while True:
                self._news.clear()
                await self._look_all()
                self._begin()
                self._bench.hold.look()
                await self._tell_peers()
                if (told := self._told()) != self._said:
                    self._said = told
                    self._changed()
                if not self._due():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._look_s):
                            await self._news.wait()
        except Exception:
            _log.exception("the workshop of experts ended")
            raise
        finally:
            under_way = self._under_way
            if under_way is not None:
                self._end()
                await asyncio.wait({under_way.task})

    def _due(self) -> list[Job]:
        now_s = self._clock()
        return [
            job
            for job in self._jobs.values()
            if job is not self._current
            and (job.due or self._stale(job, now_s))
            and job.next_s <= now_s
        ]

    def _stale(self, job: Job, now_s: float) -> bool:
        shard = isinstance(job.wish, ShardWish)
        return shard and job.state.stage is WorkStage.READY and now_s - job.looked_s >= LOOK_AGAIN_S

    async def _look_all(self) -> None:
        for job in self._due():
            if self._jobs.get(job.key) is not job:
                continue
            wish, job.due = job.wish, False
            job.looked_s = self._clock()
            try:
                if not self._opened:
                    self._shards = await self._bench.open()
                    self._opened = True
                    self._logits = await self._bench.logits_here()
                if isinstance(wish, RankingWish):
                    whole = await self._look_ranking(wish)
                else:
                    whole = await self._look_shard(wish)
            except SAID as error:
                self._failed(job, in_words(error))
                continue
            except Exception:
                _log.exception("the workshop of experts")
                self._failed(job, "an error of meshd's own, see its log")
                continue
            made, job.made = job.made, False
            if whole:
                job.failures, job.in_vain = 0, False
                job.state = WorkState(WorkStage.READY, 1.0)
            elif made and wish is job.wish:
                self._failed(job, "what was made is not what was wished")
            elif job.state.stage is WorkStage.READY:
                job.state = WorkState(WorkStage.WAITING)

    async def _look_ranking(self, wish: RankingWish) -> bool:
        found, whole = await self._bench.look_ranking(wish)
        if found is not None:
            self._rankings[wish.fingerprint] = found
            while len(self._rankings) > WISHES_MAX:
                del self._rankings[next(iter(self._rankings))]
        return whole

    async def _look_shard(self, wish: ShardWish) -> bool:
        found = await self._bench.look_shard(wish)
        self._texts[wish.fingerprint] = found.texts
        shards = dict(self._shards)
        shards.pop(wish.key, None)
        if found.shard is not None:
            shards[wish.key] = found.shard
        self._shards = shards
        return found.whole

    def _begin(self) -> None:
        hold, now_s = self._bench.hold, self._clock()
        under_way = self._under_way
        if under_way is not None and under_way.task.done():
            self._under_way = under_way = None
            hold.end()
        ready = (
            job
            for job in self._jobs.values()
            if job.state.stage is not WorkStage.READY and not job.due and job.next_s <= now_s
        )
        job = next(ready, None)
        if job is None:
            if under_way is None and self._idle_due(now_s):
                self._tidied_s = now_s
                self._start(None, self._idle())
            return
        if under_way is not None:
            if under_way.job is None:
                self._end()
            return
        # To ask others for a small file disturbs nobody.
        light = isinstance(job.wish, RankingWish) and job.wish.holders
        if light or hold.may_begin():
            job.began_s = now_s
            self._start(job, self._serve(job))
        elif job.state.stage is not WorkStage.FAILED:
            job.state = WorkState(WorkStage.WAITING, detail="waits for a moment without requests")

    def _start(self, job: Job | None, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            finally:
                self._news.set()

        self._under_way = _UnderWay(job, asyncio.create_task(run()))

    def _end(self) -> None:
        """What is under way is to end; what it did so far stays."""
        assert self._under_way is not None
        # What stands still could not end by itself.
        self._bench.hold.end()
        self._under_way.task.cancel()

    async def _serve(self, job: Job) -> None:
        wish = job.wish

        def show(state: WorkState) -> None:
            before, job.state = job.told, state
            if before != job.told and self._loop is not None:
                # Too late where a thread hung until after the end.
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._news.set)

        try:
            if isinstance(wish, RankingWish):
                await self._bench.make_ranking(wish, show, job.failures)
            else:
                await self._bench.make_shard(wish, show, job.failures)
        except WaitingError as error:
            job.state = WorkState(WorkStage.WAITING, detail=str(error))
            job.next_s = self._clock() + RETRY_FIRST_S
        except asyncio.CancelledError:
            job.state = WorkState(WorkStage.WAITING)
            raise
        except SAID as error:
            self._failed(job, in_words(error))
        except Exception:
            _log.exception("the workshop of experts")
            self._failed(job, "an error of meshd's own, see its log")
        else:
            seconds = round(self._clock() - job.began_s, 1)
            _log.info("made", what=name(wish), model=wish.model, key=job.key, seconds=seconds)
            job.made = job.due = True
        if isinstance(wish, ShardWish):
            # Others may have had to make room.
            self._shards = await self._bench.shards_here()
            self._logits = await self._bench.logits_here()

    def _failed(self, job: Job, why: str) -> None:
        job.failures += 1
        job.in_vain = job.in_vain or job.wish.computes
        job.next_s = self._clock() + retry_s(job.failures)
        job.due = True
        _log.warning(
            "a part of the workshop's work failed", what=name(job.wish), model=job.wish.model,
            stage=str(job.state.stage), failures=job.failures, why=why,
        )  # fmt: skip
        job.state = WorkState(WorkStage.FAILED, job.state.progress, why)

    def _idle_due(self, now_s: float) -> bool:
        return self._opened and (self._tidied_s is None or now_s - self._tidied_s >= TIDY_S)

    async def _idle(self) -> None:
        try:
            await self._bench.tidy()
            self._shards = await self._bench.shards_here()
            for job in self._jobs.values():
                job.due = True
        except SAID as error:
            _log.warning("the folders of shards cannot be kept in order", why=in_words(error))
        except Exception:
            _log.exception("the workshop of experts")

    async def _tell_peers(self) -> None:
        known = self._rankings.keys() | self._logits.keys()
        shared = {
            one: SharedExperts(
                self._bench.ranking_file(self._rankings[one]) if one in self._rankings else "",
                dict(self._logits.get(one, {})),
            )
            for one in known
        }
        if shared != self._shared:
            self._shared = shared
            await asyncio.to_thread(self._share, shared)

    def _told(self) -> object:
        return (
            [job.told for job in self._jobs.values()],
            [(one, ranking.digest) for one, ranking in self._rankings.items()],
            self._shards,
            self.logits(),
        )
