"""Measures how fast this machine's devices are, once and when nobody is kept waiting by it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from meshd.engine.build import EngineBuild
from meshd.files import write_atomically
from meshd.node.idle import Ticks, busy_share, read_ticks
from meshd.node.inventory import Gpu, Hardware
from meshd.node.processor import read_last_cache_bytes
from meshd.node.speed import FILE_MAX_BYTES, Speed, better, decode, encode, keys, valid
from meshd.node.speed_bench import BenchError, Measure, measure, tasks_of

_log = structlog.get_logger(__name__)

_BUSY_SHARE = 0.25
_TRIES_MOST = 5


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds.

    :ivar settle: after the start: models load first, and whoever asks at once is not disturbed.
    :ivar look: between two looks at how busy the machine is.
    :ivar patience: so long a quiet moment is waited for before a busy one has to do.
    :ivar again: until what was disturbed or failed is tried again.
    :ivar disturbed: between two looks at whether a request came meanwhile.
    """

    settle: float = 20.0
    look: float = 2.0
    patience: float = 300.0
    again: float = 900.0
    disturbed: float = 0.1


@dataclass(frozen=True, slots=True)
class _Machine:
    hardware: Hardware
    gpus: tuple[Gpu, ...]
    build: EngineBuild

    @property
    def keys(self) -> dict[str, str]:
        return keys(self.hardware, self.gpus, self.build)


@dataclass(slots=True)
class _Tries:
    key: str
    count: int = 0
    next_s: float = 0.0


class SpeedWatch:
    """Speeds by device, from a file or measured in the background.

    :param path: where they are kept; the model to measure with lies beside it meanwhile.
    :param measures: whether to measure at all, or only to tell what is known.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        measures: bool = True,
        bench: Measure = measure,
        ticks: Callable[[], Ticks | None] = read_ticks,
        pauses: Pauses = Pauses(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._measures = measures
        self._bench = bench
        self._ticks = ticks
        self._pauses = pauses
        self._clock = clock
        self._machine: _Machine | None = None
        self._known: dict[str, Speed] = {}
        self._written_ns = 0
        self.refresh()
        self._tries: dict[str, _Tries] = {}
        self._task: asyncio.Task[None] | None = None
        self._quiet: Callable[[], bool] = lambda: True
        self._changed: Callable[[], None] = lambda: None

    def refresh(self) -> None:
        """Take up what somebody else wrote (`meshd bench --now`). Blocks for a stat, mostly."""
        try:
            written_ns = self._path.stat().st_mtime_ns
        except OSError:
            return
        if written_ns != self._written_ns:
            self._written_ns = written_ns
            self._known = {one.device: one for one in read(self._path)} or self._known

    def look(self, hardware: Hardware, gpus: Iterable[Gpu], build: EngineBuild | None) -> None:
        """What the machine is now: speeds of other hardware or another engine are none."""
        self._machine = _Machine(hardware, tuple(gpus), build) if build else None

    def now(self) -> Mapping[str, Speed]:
        """By device, those that are known of this hardware and engine."""
        return valid(self._known.values(), self._machine.keys) if self._machine else {}

    def start(self, quiet: Callable[[], bool], changed: Callable[[], None]) -> None:
        """Begin to measure in the background.

        :param quiet: whether no engine loads or has a request; asked in the event loop.
        :param changed: called in the event loop when `now` has changed.
        """
        self._quiet, self._changed = quiet, changed
        if self._measures and self._task is None:
            self._task = asyncio.create_task(self._work(), name="measure speed")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # -- inside ---------------------------------------------------------------------------------

    async def _work(self) -> None:
        await asyncio.sleep(self._pauses.settle)
        busy_since_s = self._clock()
        while True:
            machine = self._machine
            device = self._due(machine) if machine else None
            if machine is None or device is None:
                busy_since_s = self._clock()
                await asyncio.sleep(self._pauses.look)
                continue
            calm = await self._calm()
            patient = self._clock() - busy_since_s < self._pauses.patience
            if not self._quiet() or (not calm and patient):
                continue
            await self._try(machine, device, calm=calm)
            busy_since_s = self._clock()

    def _due(self, machine: _Machine) -> str | None:
        known, now_s = self.now(), self._clock()
        for device, key in machine.keys.items():
            tries = self._tries.get(device)
            if tries is None or tries.key != key:
                self._tries[device] = tries = _Tries(key)
            lacks = device not in known or not known[device].calm
            if lacks and tries.count < _TRIES_MOST and now_s >= tries.next_s:
                return device
        return None

    async def _calm(self) -> bool:
        before = self._ticks()
        await asyncio.sleep(self._pauses.look)
        return busy_share(before, self._ticks()) < _BUSY_SHARE

    async def _try(self, machine: _Machine, device: str, *, calm: bool) -> None:
        tries = self._tries[device]
        cache_bytes = await asyncio.to_thread(read_last_cache_bytes, Path("/"))
        gpus = {gpu.id: gpu for gpu in machine.gpus}
        tasks = tasks_of(machine.hardware, gpus, machine.build, cache_bytes, device)
        tries.next_s = self._clock() + self._pauses.again
        tries.count += 1
        if not tasks:
            return
        try:
            speed = await self._undisturbed(self._bench(tasks, machine.build, self._path.parent))
        except BenchError as error:
            _log.warning("a device's speed could not be measured", device=device, error=str(error))
            return
        if speed is None:
            # Somebody asked something: that was no try, and the next quiet moment is soon enough.
            tries.count -= 1
            tries.next_s = self._clock() + self._pauses.settle
            return
        await self._keep(replace(speed, calm=speed.calm and calm))

    async def _undisturbed(self, work: Awaitable[Speed]) -> Speed | None:
        """None when a request came or an engine began to load; the measurement then ends."""
        running = asyncio.ensure_future(work)
        try:
            while not running.done():
                if not self._quiet():
                    return None
                await asyncio.wait({running}, timeout=self._pauses.disturbed)
            return running.result()
        finally:
            if not running.done():
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running

    async def _keep(self, speed: Speed) -> None:
        before = self.now()
        known = self._known.get(speed.device)
        self._known[speed.device] = better(known, speed)
        try:
            await asyncio.to_thread(
                write_atomically, self._path, encode(tuple(self._known.values()))
            )
        except OSError as error:
            _log.warning("a device's speed could not be kept", error=str(error))
        if self.now() != before:
            _log.info(
                "measured",
                device=speed.device,
                bandwidth_bytes_s=speed.bandwidth_bytes_s,
                flops_s=speed.flops_s,
                calm=speed.calm,
            )
            self._changed()


async def measure_now(
    path: Path,
    hardware: Hardware,
    build: EngineBuild,
    *,
    said: Callable[[str], None],
) -> tuple[Speed, ...]:
    """Measure every device, whatever else the machine does, and remember it.

    :param said: told, in one sentence, what could not be done.
    :return: all that is remembered afterwards.
    """
    known = {one.device: one for one in await asyncio.to_thread(read, path)}
    cache_bytes = await asyncio.to_thread(read_last_cache_bytes, Path("/"))
    gpus = {gpu.id: gpu for gpu in hardware.gpus}
    for device in keys(hardware, hardware.gpus, build):
        tasks = tasks_of(hardware, gpus, build, cache_bytes, device)
        if not tasks:
            said(f"{device}: cannot be measured with this engine")
            continue
        try:
            # Somebody waits for it.
            known[device] = await measure(tasks, build, path.parent, niceness=0)
        except BenchError as error:
            said(f"{device}: {error}")
    try:
        await asyncio.to_thread(write_atomically, path, encode(known.values()))
    except OSError as error:
        said(f"{path}: {error.strerror}")
    return tuple(known.values())


def read(path: Path) -> tuple[Speed, ...]:
    """What an earlier life measured; nothing where that cannot be read."""
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ValueError("too long")
        return decode(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        _log.warning("speeds of an earlier life are not known", error=str(error))
        return ()
