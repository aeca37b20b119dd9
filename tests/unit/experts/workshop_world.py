"""A workshop whose tools are not the engine's: each may fail, hang, or do its work at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.errors import UserError
from meshd.experts.bench import Bench
from meshd.experts.hold import Hold
from meshd.experts.logits_file import DifferError
from meshd.experts.ranking import Ranking, Selection
from meshd.experts.shard_key import shard_key
from meshd.experts.wish import Holder, RankingWish, ShardWish, Text, WorkStage
from meshd.experts.work_tools import About, Progress, Started, Tools
from meshd.experts.workshop import NodeWorkshop
from meshd.paths import Paths, under
from meshd.quality import Fidelity
from meshd.seeding.quota import Disk
from meshd.shared_models import SharedExperts
from tests.unit.test_speed import BUILD

DEADLINE_S = 10.0
MODEL = "f" * 16
EXPERTS = (0, 4, 4)
USED = 2
SELECTION: Selection = ((), (0, 1), (2, 3))
LOGITS = b"logits of "


@dataclass(frozen=True)
class Written:
    path: Path
    size_bytes: int
    sha256: str


@dataclass
class Gate:
    """A tool's door. :ivar error: what it ends with. :ivar holds: it does not end by itself.

    :ivar entered: how often it was begun; ``left`` how often it was ended from outside.
    """

    error: Exception | None = None
    holds: bool = False
    entered: int = 0
    left: int = 0

    async def pass_(self, progress: Progress) -> None:
        self.entered += 1
        progress(0.5)
        try:
            while self.holds:
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.left += 1
            raise
        if self.error is not None:
            raise self.error


@dataclass
class World:
    """:ivar log: what the tools did, in order."""

    folder: Path
    now_s: float = 1000.0
    quiet: bool = True
    changes: int = 0
    shared: Mapping[str, SharedExperts] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    count: Gate = field(default_factory=Gate)
    write: Gate = field(default_factory=Gate)
    logits: Gate = field(default_factory=Gate)
    measure: Gate = field(default_factory=Gate)
    trial: Gate = field(default_factory=Gate)
    counts: tuple[int, ...] = (10, 20, 40, 30)
    free_bytes: int = 1 << 39
    calibration: str = "c" * 64
    tls: Path | None = None
    figures: Mapping[str, Fidelity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.write_bytes(b"the model")
        for name in ("prose", "code"):
            (self.folder / f"{name}.ranks").write_text(f"{name} to rank")
            (self.folder / f"{name}.measures").write_text(f"{name} to measure")

    @property
    def model(self) -> Path:
        return self.folder / "model.gguf"

    @property
    def paths(self) -> Paths:
        return under(self.folder)

    @property
    def texts(self) -> tuple[Text, ...]:
        return tuple(
            Text(name, str(self.folder / f"{name}.ranks"), str(self.folder / f"{name}.measures"))
            for name in ("prose", "code")
        )

    def ranking(self, *counts: int) -> Ranking:
        layer = counts or self.counts
        tokens = sum(layer) // 2
        return Ranking(MODEL, self.calibration, tokens, ((), layer, tuple(reversed(layer))))

    def ranking_wish(
        self, *holders: Holder, computes: bool = True, wanted: str = ""
    ) -> RankingWish:
        return RankingWish(MODEL, "mix", (str(self.model),), self.texts, computes, wanted, holders)

    def shard_wish(
        self, *holders: Holder, computes: bool = True, selection: Selection = SELECTION
    ) -> ShardWish:
        ranking = self.ranking()
        key = shard_key(MODEL, ranking.digest, selection)
        return ShardWish(
            key, MODEL, "mix", (str(self.model),), ranking, selection, self.texts, holders,
            computes,
        )  # fmt: skip

    @property
    def key(self) -> str:
        return self.shard_wish().key

    def tools(self) -> Tools:
        return Tools(
            build=lambda: BUILD,
            about=lambda _: About(EXPERTS, 100, USED),
            fingerprint=self._fingerprint,
            calibration=lambda _: self.calibration,
            count=self._count,
            write=self._write,
            shard_bytes=lambda files, selection: 1000,
            save_logits=self._save_logits,
            try_logits=self._try_logits,
            measure=self._measure,
            logits_bytes=lambda vocabulary: 1 << 20,
            check_logits=_check_logits,
            disk=lambda _: Disk(1 << 40, self.free_bytes),
            tls=self.tls,
        )

    def _fingerprint(self, files: Sequence[Path]) -> str:
        (file,) = files
        return MODEL if file.read_bytes() == b"the model" else "e" * 16

    async def _count(
        self,
        files: tuple[str, ...],
        texts: tuple[Path, ...],
        folder: Path,
        build: EngineBuild,
        *,
        fingerprint: str,
        experts: tuple[int, ...],
        progress: Progress,
        started: Started,
    ) -> Ranking:
        assert (fingerprint, experts, files) == (MODEL, EXPERTS, (str(self.model),))
        assert all(path.name.endswith(".ranks") for path in texts)
        assert await asyncio.to_thread(folder.is_dir)
        self.log.append("count")
        await self.count.pass_(progress)
        return self.ranking()

    def _write(
        self,
        files: tuple[str, ...],
        selection: Selection,
        target: Path,
        *,
        progress: Callable[[int, int], None],
        stopped: Callable[[], bool],
    ) -> Written:
        self.log.append("write")
        self.write.entered += 1
        part = target.with_name(f".{target.name}.part")
        part.write_bytes(b"half")
        progress(1, 2)
        while self.write.holds:
            if stopped():
                self.write.left += 1
                raise UserError("the writing of a shard was stopped")
        if self.write.error is not None:
            raise self.write.error
        data = repr(selection).encode()
        part.write_bytes(data)
        part.replace(target)
        return Written(target, len(data), hashlib.sha256(data).hexdigest())

    async def _save_logits(
        self,
        model: Path,
        text: Path,
        target: Path,
        build: EngineBuild,
        *,
        progress: Progress,
        started: Started,
    ) -> None:
        assert model == self.model
        self.log.append(f"logits {text.stem}")
        await self.logits.pass_(progress)
        await asyncio.to_thread(lambda: target.write_bytes(LOGITS + text.read_bytes()))

    async def _try_logits(
        self, model: Path, text: Path, logits: Path, build: EngineBuild, *, started: Started
    ) -> None:
        assert model == self.model
        await self.trial.pass_(lambda _: None)
        if await asyncio.to_thread(lambda: logits.read_bytes() != LOGITS + text.read_bytes()):
            raise DifferError("they are another's")

    async def _measure(
        self,
        model: Path,
        text: Path,
        logits: Path,
        domain: str,
        build: EngineBuild,
        *,
        progress: Progress,
        started: Started,
    ) -> Fidelity:
        assert model == self.paths.shards / f"{self.key}.gguf"
        assert await asyncio.to_thread(lambda: logits.read_bytes() == LOGITS + text.read_bytes())
        self.log.append(f"measure {domain}")
        await self.measure.pass_(progress)
        return self.figures.get(domain, Fidelity(domain, 0.95, 1.02, 0.03))

    def _changed(self) -> None:
        self.changes += 1

    def _share(self, shared: Mapping[str, SharedExperts]) -> None:
        self.shared = shared

    @asynccontextmanager
    async def open(self) -> AsyncIterator[NodeWorkshop]:
        """A life of the workshop."""
        hold = Hold(lambda: self.quiet, lambda: self.now_s)
        bench = Bench(self.paths, self.tools(), hold)
        workshop = NodeWorkshop(
            bench,
            changed=self._changed,
            share=self._share,
            clock=lambda: self.now_s,
            look_s=0.001,
        )
        before = asyncio.all_tasks()
        try:
            yield workshop
        finally:
            await workshop.close()
            assert asyncio.all_tasks() <= before


def _check_logits(path: Path, *, vocabulary: int, stopped: Callable[[], bool]) -> None:
    if not path.read_bytes().startswith(LOGITS):
        raise ValueError("these are no logits")


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not what():
            await asyncio.sleep(0.001)


async def stage(workshop: NodeWorkshop, key: str, wanted: WorkStage) -> str:
    """Its detail, once it is there."""
    await until(lambda: workshop.states()[key].stage is wanted)
    return workshop.states()[key].detail


async def rounds(count: int = 50) -> None:
    """Time for a workshop that would act to do so."""
    for _ in range(count):
        await asyncio.sleep(0.001)
