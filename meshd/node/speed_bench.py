"""One short run of llama-bench a device, in a child process of low priority."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meshd.engine.backends import engine_devices
from meshd.engine.build import EngineBuild
from meshd.engine.locate import BENCH
from meshd.node.inventory import Gpu, Hardware
from meshd.node.speed import (
    RAM,
    Sample,
    Speed,
    bandwidth_bytes_s,
    flops_s,
    gpu_key,
    parse_bench,
    ram_key,
)
from meshd.node.speed_model import ModelShape, write

# A processor of ten years ago needs a quarter of it.
DEADLINE_S = 60.0
_OUTPUT_MAX_BYTES = 64 * 1024
_MIB = 1024**2

_FOR_PROCESSORS = ModelShape(layers=8, width=2048, feed_forward=8192, heads=16, kv_heads=4)
_MOST_LAYERS = 16
# Layers wide enough that a GPU reads rather than waits for its next order.
_FOR_GPUS = ModelShape(layers=32, width=4096, feed_forward=14336, heads=32, kv_heads=8)


class BenchError(Exception):
    """Nothing was measured; the message says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Task:
    """One run. :ivar lent: as an rpc-server would compute, with weights as they lie."""

    device: str
    key: str
    shape: ModelShape
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    lent: bool = False


def ram_tasks(hardware: Hardware, build: EngineBuild, cache_bytes: int) -> tuple[Task, ...]:
    """The system's memory: as llama-server uses it, then as an rpc-server does.

    :param cache_bytes: of the processor's last level, which the model has to exceed.
    """
    shape = _exceeding(cache_bytes, hardware.ram.available_bytes)
    key = ram_key(hardware.cpu, build)
    threads = str(max(1, hardware.cpu.physical_cores))
    common = ("-ngl", "0", "-dev", "none", "-t", threads)
    return (
        Task(RAM, key, shape, common),
        Task(RAM, key, shape, (*common, "--repack", "0"), lent=True),
    )


def gpu_task(gpu: Gpu, hardware: Hardware, build: EngineBuild) -> Task | None:
    """None where there is no room for a model that would tell anything.

    :raises ValueError: no backend drives the GPU.
    """
    per_layer = _FOR_GPUS.read_bytes // _FOR_GPUS.layers
    room = min(gpu.free_bytes, hardware.ram.available_bytes) // 2
    layers = min(_FOR_GPUS.layers, room // per_layer)
    if layers < 4:
        return None
    shape = ModelShape(layers, _FOR_GPUS.width, _FOR_GPUS.feed_forward, 32, 8)
    devices = engine_devices((gpu.id,), hardware.gpus, build.backends)
    arguments = ("-ngl", "99", "-dev", devices.names[0])
    return Task(gpu.id, gpu_key(gpu, build), shape, arguments, devices.environment)


async def measure(
    tasks: tuple[Task, ...], build: EngineBuild, folder: Path, niceness: int = 19
) -> Speed:
    """Run the tasks of one device, one after another.

    Cancelling it ends the child.

    :param folder: where the model lies meanwhile; on a disk rather than in memory.
    :param niceness: added to our own: by default, what serves has the processors.
    :raises BenchError: the engine has no llama-bench, or its first run said nothing.
    """
    bench = build.binary(BENCH)
    if bench is None:
        raise BenchError(f"this engine has no {BENCH}")
    found: dict[bool, tuple[Sample, Sample]] = {}
    for task in tasks:
        try:
            command = ("nice", "-n", str(niceness), bench.path)
            found[task.lent] = await _run(task, command, folder)
        except BenchError:
            # An older build does not know how to leave weights as they are.
            if not task.lent:
                raise
    first = tasks[0]
    own = found[False]
    lent = found.get(True)
    return Speed(
        device=first.device,
        key=first.key,
        bandwidth_bytes_s=_bandwidth(first, own),
        flops_s=_flops(first, own),
        lent_bandwidth_bytes_s=_bandwidth(first, lent) if lent else 0,
        lent_flops_s=_flops(first, lent) if lent else 0,
        calm=all(sample.calm for pair in found.values() for sample in pair),
    )


def _bandwidth(task: Task, samples: tuple[Sample, Sample]) -> int:
    return bandwidth_bytes_s(task.shape.read_bytes, task.shape.layers, samples[1].best)


def _flops(task: Task, samples: tuple[Sample, Sample]) -> int:
    return flops_s(task.shape.block_weights, samples[0].best)


async def _run(task: Task, program: tuple[str, ...], folder: Path) -> tuple[Sample, Sample]:
    """:return: of the prompt, of decoding."""
    try:
        text = await _output(task, program, folder)
    except OSError as error:
        raise BenchError(f"{program[-1]}: {error}") from error
    try:
        samples = parse_bench(text)
    except ValueError as error:
        raise BenchError(str(error)) from error
    prompts = [one for one in samples if one.prompt]
    decoded = [one for one in samples if not one.prompt]
    if not prompts or not decoded:
        raise BenchError(f"{BENCH} said nothing of {'decoding' if prompts else 'prompts'}")
    return prompts[0], decoded[0]


async def _output(task: Task, program: tuple[str, ...], folder: Path) -> str:
    with tempfile.TemporaryDirectory(prefix=".speed-", dir=folder) as place:
        path = Path(place) / "model.gguf"
        await asyncio.to_thread(write, task.shape, path)
        command = (
            # A sandbox that allows no niceness is no hindrance: it is said, and the run goes on.
            *(*program, "-m", str(path), *task.arguments),
            *("-p", "64", "-n", "6", "-r", "4", "-o", "jsonl"),
        )
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **dict(task.environment)},
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                out, said = await asyncio.gather(_read(child.stdout), _read(child.stderr))
                code = await child.wait()
        except TimeoutError as error:
            raise BenchError(f"{BENCH} was not done after {DEADLINE_S:.0f} s") from error
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await asyncio.shield(child.wait())
        if code != 0:
            last = (said.strip().splitlines() or ["no message"])[-1]
            raise BenchError(f"{BENCH}: exit {code}: {last[:200]}")
        return out


async def _read(stream: asyncio.StreamReader | None) -> str:
    """The end of what a child says, and all of it taken from the pipe."""
    assert stream is not None
    kept = b""
    while piece := await stream.read(65536):
        kept = (kept + piece)[-_OUTPUT_MAX_BYTES:]
    return kept.decode(errors="replace")


def _exceeding(cache_bytes: int, available_bytes: int) -> ModelShape:
    small = _FOR_PROCESSORS
    per_layer = small.read_bytes // small.layers
    wanted = -(-3 * cache_bytes // 2 // per_layer)
    # The engine holds the file and a copy of it that suits the processor.
    room = available_bytes // 4 // (2 * per_layer)
    layers = max(2, min(max(small.layers, wanted), _MOST_LAYERS, room))
    return ModelShape(layers, small.width, small.feed_forward, small.heads, small.kv_heads)


Measure = Callable[[tuple[Task, ...], EngineBuild, Path], Awaitable[Speed]]
"""The port that `measure` stands behind."""


def tasks_of(
    hardware: Hardware, gpus: Mapping[str, Gpu], build: EngineBuild, cache_bytes: int, device: str
) -> tuple[Task, ...]:
    """What to run for one device, nothing where there is nothing to learn."""
    if device == RAM:
        return ram_tasks(hardware, build, cache_bytes)
    try:
        task = gpu_task(gpus[device], hardware, build)
    except (KeyError, ValueError):
        return ()
    return (task,) if task else ()
