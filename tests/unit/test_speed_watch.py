"""When devices are measured: once, in a quiet moment, and never in anybody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshd.engine.build import EngineBuild
from meshd.node.idle import Ticks, busy_share, parse_stat
from meshd.node.speed import RAM, Speed, decode
from meshd.node.speed_bench import BenchError, Task
from meshd.speed_watch import Pauses, SpeedWatch
from tests.unit import worlds
from tests.unit.test_speed import BUILD

MACHINE = worlds.hardware()
QUICK = Pauses(settle=0.0, look=0.001, patience=0.05, again=0.01, disturbed=0.001)
DEADLINE_S = 10.0


@dataclass
class Bench:
    """Stands where llama-bench runs. :ivar holds: a run does not end before it is cleared."""

    runs: list[str] = field(default_factory=list)
    ended_early: int = 0
    calm: bool = True
    error: str = ""
    holds: asyncio.Event | None = None

    async def __call__(self, tasks: tuple[Task, ...], build: EngineBuild, folder: Path) -> Speed:
        self.runs.append(tasks[0].device)
        try:
            if self.holds is not None:
                await self.holds.wait()
        except asyncio.CancelledError:
            self.ended_early += 1
            raise
        if self.error:
            raise BenchError(self.error)
        return Speed(tasks[0].device, tasks[0].key, 13, 400, 9, 200, calm=self.calm)


@dataclass
class Moment:
    quiet: bool = True
    changes: int = 0
    busy: int = 0
    idle: int = 0

    def ticks(self) -> Ticks:
        self.idle += 100
        return Ticks(self.busy * self.idle, self.idle)

    def changed(self) -> None:
        self.changes += 1


@asynccontextmanager
async def watching(
    path: Path, bench: Bench, moment: Moment, pauses: Pauses = QUICK, build: EngineBuild = BUILD
) -> AsyncIterator[SpeedWatch]:
    watch = SpeedWatch(path, bench=bench, ticks=moment.ticks, pauses=pauses)
    watch.look(MACHINE, MACHINE.gpus, build)
    watch.start(lambda: moment.quiet, moment.changed)
    try:
        yield watch
    finally:
        await watch.close()


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not what():
            await asyncio.sleep(0.001)


async def rounds(count: int = 50) -> None:
    """Time for a watch that would act to do so."""
    for _ in range(count):
        await asyncio.sleep(0.001)


async def test_measured_once_and_remembered(tmp_path: Path) -> None:
    path, bench, moment = tmp_path / "speeds.json", Bench(), Moment()
    async with watching(path, bench, moment) as watch:
        assert watch.now() == {}
        await until(lambda: moment.changes)
        assert watch.now()[RAM].bandwidth_bytes_s == 13
        await rounds()
    assert (bench.runs, moment.changes) == ([RAM], 1)
    again = Bench()
    async with watching(path, again, moment) as watch:
        assert watch.now()[RAM].lent_flops_s == 200
        await rounds()
    assert again.runs == []


async def test_another_engine_is_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    moment = Moment()
    async with watching(path, Bench(), moment):
        await until(lambda: moment.changes)
    bench = Bench()
    other = replace(BUILD, version="0.8.0")
    async with watching(path, bench, moment, build=other) as watch:
        assert watch.now() == {}
        await until(lambda: moment.changes == 2)
    assert bench.runs == [RAM]
    assert len(decode(path.read_bytes())) == 1


async def test_a_damaged_file_is_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    path.write_bytes(b'{"schema":1,"speeds":[{"dev')
    moment = Moment()
    async with watching(path, Bench(), moment):
        await until(lambda: moment.changes)
    assert decode(path.read_bytes())[0].device == RAM


async def test_a_request_ends_the_measurement_at_once(tmp_path: Path) -> None:
    bench, moment = Bench(holds=asyncio.Event()), Moment()
    async with watching(tmp_path / "speeds.json", bench, moment) as watch:
        await until(lambda: bench.runs)
        moment.quiet = False
        await until(lambda: bench.ended_early)
        await rounds()
        assert len(bench.runs) == 1
        moment.quiet = True
        assert bench.holds is not None
        bench.holds.set()
        await until(watch.now)


async def test_a_busy_machine_is_waited_for_then_taken_as_it_is(tmp_path: Path) -> None:
    bench, moment = Bench(), Moment(busy=1)
    patient = replace(QUICK, patience=1000.0)
    async with watching(tmp_path / "a.json", bench, moment, patient) as watch:
        await rounds()
        assert bench.runs == []
        moment.busy = 0
        await until(watch.now)
        assert watch.now()[RAM].calm
    bench, moment = Bench(), Moment(busy=1)
    async with watching(tmp_path / "b.json", bench, moment) as watch:
        await until(watch.now)
        assert not watch.now()[RAM].calm
        # Better figures come when it is calm.
        moment.busy = 0
        await until(lambda: watch.now()[RAM].calm)


async def test_what_cannot_be_measured_is_not_tried_for_ever(tmp_path: Path) -> None:
    bench = Bench(error="this engine has no llama-bench")
    async with watching(tmp_path / "speeds.json", bench, Moment()) as watch:
        await until(lambda: len(bench.runs) == 5)
        await rounds()
        assert watch.now() == {}
    assert len(bench.runs) == 5


async def test_no_engine_no_measurement(tmp_path: Path) -> None:
    bench = Bench()
    watch = SpeedWatch(tmp_path / "speeds.json", bench=bench, ticks=Moment().ticks, pauses=QUICK)
    watch.look(MACHINE, (), None)
    watch.start(lambda: True, lambda: None)
    await rounds()
    await watch.close()
    assert bench.runs == []


def test_how_busy_a_machine_is() -> None:
    before = parse_stat("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3 4\n")
    after = parse_stat("cpu  150 0 50 1000 0 0 0 0 0 0\n")
    assert before == Ticks(150, 850)
    assert busy_share(before, after) == 0.25
    assert busy_share(None, after) == 0.0
    assert busy_share(after, after) == 0.0
    assert parse_stat("intr 1 2 3") is None
    assert parse_stat("cpu a b c d e") is None
