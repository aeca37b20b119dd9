"""The tensor cache as the brain has it: one wish after the other, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from meshd.errors import UserError
from meshd.seeding.manifest import Manifest
from meshd.seeding.seed import (
    StoppedError,
    Tools,
    missing,
    needed_names,
    seed,
)
from meshd.seeding.store import Finding
from meshd.seeding.tensor_list import of_layers
from meshd.seeding.wish import SeedStage, SeedState, SeedWish

_log = structlog.get_logger(__name__)

# A cached file can be hit whenever its rpc-server starts again, which nobody announces here.
LOOK_S = 5.0
# A disk of 1 TB with a fifth of cache is read through in less than two hours, once a day.
VERIFY_EVERY_S = 86_400
VERIFY_BYTES_S = 32 << 20
# After something went wrong that may pass: a disk that was full, a peer that was away.
RETRY_S = 60.0
# Within what systemd gives meshd to stop.
CLOSE_S = 10.0
_WISHES_MAX = 64
_SETTLED = (SeedStage.READY, SeedStage.UNSEEDED)


@dataclass(slots=True)
class _Job:
    """:ivar gone: nobody wants it any more. :ivar due: its files are to be looked at.

    :ivar retry_s: when to try again what was given up, on our clock.
    """

    wish: SeedWish
    state: SeedState
    gone: threading.Event
    due: bool = True
    retry_s: float = 0.0

    def show(self, state: SeedState) -> None:
        """What is done later does not take READY back: an rpc-server runs by then, and finds
        either what is right or nothing.
        """
        if self.state.stage in _SETTLED and state.stage not in _SETTLED:
            state = replace(self.state, detail=state.detail)
        self.state = state


class Seeding:
    """The `Seeder`. `want` must be called with a running event loop; the rest needs none.

    :param wake: called on the loop when a stage or its detail became another.
    """

    def __init__(
        self,
        tools: Tools,
        wake: Callable[[], None] = lambda: None,
        *,
        look_s: float = LOOK_S,
        verify_every_s: float = VERIFY_EVERY_S,
        verify_bytes_s: float = VERIFY_BYTES_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._tools = tools
        self._wake = wake
        self._look_s = look_s
        self._verify_every_s = verify_every_s
        self._verify_bytes_s = verify_bytes_s
        self._retry_s = retry_s
        self._jobs: dict[str, _Job] = {}
        self._changed = asyncio.Event()
        self._closed = threading.Event()
        self._opened = False
        # Not the loop's own threads: a disk that hangs would take them all by and by.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="seeding")
        self._task: asyncio.Task[None] | None = None
        self._interrupt = threading.Event()

    def want(self, wishes: tuple[SeedWish, ...]) -> None:
        jobs: dict[str, _Job] = {}
        for wish in wishes[:_WISHES_MAX]:
            old = self._jobs.get(wish.key)
            if old is not None and _same(old.wish, wish):
                if old.wish != wish and old.state.stage is SeedStage.UNSEEDED:
                    old.retry_s = 0.0
                old.wish = wish
                jobs[wish.key] = old
            else:
                jobs[wish.key] = _Job(wish, SeedState(SeedStage.WAITING), threading.Event())
        for key, job in self._jobs.items():
            if jobs.get(key) is not job:
                job.gone.set()
        news = jobs != self._jobs
        self._jobs = jobs
        if self._task is None and (jobs or self._opened):
            self._task = asyncio.create_task(self._run())
        if news:
            self._interrupt.set()
            self._changed.set()

    def states(self) -> Mapping[str, SeedState]:
        return {key: job.state for key, job in self._jobs.items()}

    async def close(self) -> None:
        self._closed.set()
        self._interrupt.set()
        for job in self._jobs.values():
            job.gone.set()
        self._changed.set()
        if self._task is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await asyncio.shield(self._task)
            except TimeoutError:
                # A disk or an rpc-server hangs. The next life then reads what this one left.
                _log.warning("the tensor cache is left as it is, something in it hangs")
                self._thread.shutdown(wait=False)
                return
        if self._opened:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._tools.store.close)
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closed.is_set():
            self._changed.clear()
            job = self._next()
            before = self._told()
            try:
                if job is not None:
                    await loop.run_in_executor(self._thread, self._serve, job)
                else:
                    self._interrupt.clear()
                    await loop.run_in_executor(self._thread, self._look)
            except Exception:
                # Whatever it was, engines can be served without a cache.
                _log.exception("the tensor cache")
                if job is not None:
                    self._give_up(job, "an error of meshd's own, see its log")
            if before != self._told():
                self._wake()
            if self._next() is None and not self._closed.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._look_s):
                        await self._changed.wait()

    def _next(self) -> _Job | None:
        now_s = time.monotonic()
        for job in self._jobs.values():
            if job.due or (job.state.stage is SeedStage.UNSEEDED and job.retry_s <= now_s):
                return job
        return None

    def _told(self) -> list[tuple[SeedStage, str]]:
        return [(job.state.stage, job.state.detail) for job in self._jobs.values()]

    # From here on: in the thread.

    def _serve(self, job: _Job) -> None:
        try:
            self._open()
            # What was wrong while it was READY; that of an earlier failure is no news.
            given_up = job.state.stage is SeedStage.UNSEEDED
            self._check(job, "" if given_up else job.state.detail)
            job.due = False
        except StoppedError:
            pass  # nobody will look at it again
        except UserError as error:
            self._give_up(job, str(error))
        except OSError as error:
            self._give_up(job, f"{error.filename or self._tools.store.folder}: {error.strerror}")

    def _open(self) -> None:
        if not self._opened:
            self._tools.store.open()
            self._opened = True

    def _check(self, job: _Job, detail: str) -> None:
        """Until every file that the wish needs is there and was looked at."""
        store, wish = self._tools.store, job.wish
        for _ in range(3):  # what was damaged is seeded again, and checked again
            job.show(replace(job.state, stage=SeedStage.CHECKING, detail=detail))
            detail = _both(detail, self._damaged(store.check()))
            manifest = store.manifest(wish.fingerprint)
            names = needed_names(manifest, wish)
            doubted = self._doubted(manifest, names)
            if doubted:
                done, total = 0, sum(size for _, size in doubted)

                def step(count: int, total: int = total) -> None:
                    nonlocal done
                    done += count
                    self._unless_gone(job)
                    job.show(SeedState(SeedStage.CHECKING, done, total, job.state.detail))

                bad = [name for name, _ in doubted if not store.verify(name, step)]
                if bad:
                    _log.warning("cached tensors were damaged", files=bad)
                    detail = _both(detail, f"{len(bad)} damaged files are seeded anew")
                    manifest = store.manifest(wish.fingerprint)
            if manifest is not None and not missing(
                manifest, of_layers(manifest.tensors, wish.first_layer, wish.layers)
            ):
                total = sum(
                    tensor.size_bytes
                    for tensor in of_layers(manifest.tensors, wish.first_layer, wish.layers)
                )
                store.used(needed_names(manifest, wish))
                job.show(SeedState(SeedStage.READY, total, total, detail))
                return
            self._seed(job, detail)
        raise UserError("cached tensors are damaged again and again", hint="check the disk")

    def _seed(self, job: _Job, detail: str) -> None:
        def progress(stage: SeedStage, done: int, total: int) -> None:
            self._unless_gone(job)
            job.show(SeedState(stage, done, total, detail))

        began_s = time.monotonic()
        count = seed(self._tools, job.wish, self._kept(), progress, job.gone.wait)
        _log.info(
            "tensors cached", model=job.wish.model, layers=job.wish.layers, bytes=count,
            seconds=round(time.monotonic() - began_s, 1),
        )  # fmt: skip

    def _look(self) -> None:
        """Nothing else is to do: has anybody written to the files, and are they still right?"""
        if not self._opened:
            return
        try:
            why = self._damaged(self._tools.store.check())
            if why:
                self._doubt(why)
            else:
                self._verify_one()
        except StoppedError:
            pass
        except OSError as error:
            _log.warning("the tensor cache cannot be read", error=str(error))

    def _verify_one(self) -> None:
        blob = self._tools.store.stalest()
        if blob is None or blob.verified_s + self._verify_every_s > time.time():
            return
        began_s, read = time.monotonic(), 0

        def step(count: int) -> None:
            nonlocal read
            read += count
            ahead_s = read / self._verify_bytes_s - (time.monotonic() - began_s)
            if self._interrupt.wait(max(0.0, ahead_s)):
                raise StoppedError

        if not self._tools.store.verify(blob.cache_name, step):
            _log.error("a cached tensor was damaged", file=blob.cache_name)
            self._doubt("a damaged file is seeded anew")

    def _doubt(self, why: str) -> None:
        """Wishes whose files went are served again."""
        for job in list(self._jobs.values()):
            manifest = self._tools.store.manifest(job.wish.fingerprint)
            if job.state.stage is SeedStage.READY and not _complete(manifest, job.wish):
                job.show(replace(job.state, detail=why))
                job.due = True

    def _kept(self) -> frozenset[str]:
        names: frozenset[str] = frozenset()
        for job in list(self._jobs.values()):
            names |= needed_names(self._tools.store.manifest(job.wish.fingerprint), job.wish)
        return names

    def _damaged(self, findings: tuple[Finding, ...]) -> str:
        if not findings:
            return ""
        first = findings[0]
        _log.warning(
            "cached tensors were not as they were left",
            files=[f"{one.cache_name} {one.why}" for one in findings],
        )
        return f"{len(findings)} cached files are seeded anew: {first.cache_name} {first.why}"

    def _doubted(
        self, manifest: Manifest | None, names: frozenset[str]
    ) -> tuple[tuple[str, int], ...]:
        if manifest is None:
            return ()
        found = {
            blob.cache_name: blob.size_bytes
            for blob in manifest.blobs.values()
            if blob.cache_name in names and not blob.verified_s
        }
        return tuple(found.items())

    def _unless_gone(self, job: _Job) -> None:
        if job.gone.is_set() or self._closed.is_set():
            raise StoppedError

    def _give_up(self, job: _Job, why: str) -> None:
        _log.warning("weights will come over the connection", model=job.wish.model, why=why)
        job.retry_s = time.monotonic() + self._retry_s
        job.due = False
        job.show(replace(job.state, stage=SeedStage.UNSEEDED, detail=why))


def _same(old: SeedWish, new: SeedWish) -> bool:
    return replace(old, sources=()) == replace(new, sources=())


def _complete(manifest: Manifest | None, wish: SeedWish) -> bool:
    return manifest is not None and not missing(
        manifest, of_layers(manifest.tensors, wish.first_layer, wish.layers)
    )


def _both(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
