"""This machine's speed by a real llama-bench, and the plan's error by a real engine's own count."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from meshd.brain_metrics import BrainMetrics
from meshd.engine.build import Binary
from meshd.engine.describe import describe
from meshd.engine.locate import SERVER, Place
from meshd.models.gguf_facts import read_facts
from meshd.node.link import NetworkWatch, network_bytes_s
from meshd.node.observe import observe_hardware
from meshd.node.speed import RAM
from meshd.node.speed_bench import BenchError, Task, measure, ram_tasks
from meshd.node.speed_model import ModelShape, offsets, write
from meshd.paths import under
from tests.unit.test_brain_metrics import GUARD, MODEL, STATUS
from tests.wire.llama_harness import llama

# Small enough for any machine; what it says of a cache is speed all the same.
SMALL = ModelShape(layers=2, width=512, feed_forward=1024, heads=8, kv_heads=2)


def small(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    return tuple(replace(task, shape=SMALL) for task in tasks)


def left(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_machine_is_measured(engine: Place, tmp_path: Path) -> None:
    hardware, build = observe_hardware(), describe(engine)
    speed = await measure(small(ram_tasks(hardware, build, 0)), build, tmp_path)
    assert speed.device == RAM
    # From the slowest processor that could run this to more than any has.
    assert 10**7 < speed.bandwidth_bytes_s < 10**13
    assert 10**8 < speed.flops_s < 10**15
    assert 10**7 < speed.lent_bandwidth_bytes_s < 10**13
    assert left(tmp_path) == []


async def test_an_engine_that_cannot_leave_weights_as_they_are_is_measured(
    engine: Place, tmp_path: Path
) -> None:
    hardware, build = observe_hardware(), describe(engine)
    own, lent = small(ram_tasks(hardware, build, 0))
    unknown = replace(lent, arguments=(*lent.arguments, "--no-such-flag", "1"))
    speed = await measure((own, unknown), build, tmp_path)
    assert speed.bandwidth_bytes_s > 0
    assert speed.lent_bandwidth_bytes_s == 0
    with pytest.raises(BenchError, match="exit"):
        await measure((replace(unknown, lent=False),), build, tmp_path)


async def test_an_engine_without_llama_bench_says_so(engine: Place, tmp_path: Path) -> None:
    hardware, build = observe_hardware(), describe(engine)
    tasks = small(ram_tasks(hardware, build, 0))
    with pytest.raises(BenchError, match="no llama-bench"):
        await measure(tasks, replace(build, binaries=()), tmp_path)
    gone = replace(build, binaries=(Binary("llama-bench", str(tmp_path / "gone"), ""),))
    with pytest.raises(BenchError, match="exit 127"):
        await measure(tasks, gone, tmp_path)


async def test_a_measurement_that_is_given_up_leaves_nothing(engine: Place, tmp_path: Path) -> None:
    hardware, build = observe_hardware(), describe(engine)
    running = asyncio.create_task(measure(ram_tasks(hardware, build, 0), build, tmp_path))

    def child() -> bool:
        return any(str(tmp_path) in line for line in _commands())

    async with asyncio.timeout(30):
        while not await asyncio.to_thread(child):
            assert not running.done()
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not child()
    assert left(tmp_path) == []


def _commands() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(folder.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def test_the_model_is_what_its_header_says_and_takes_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shape = ModelShape(layers=8, width=2048, feed_forward=8192, heads=16, kv_heads=4)
    start = write(shape, path)
    facts = read_facts(path)
    assert len(facts.layers) == 8
    blocks = sum(layer.weight_bytes for layer in facts.layers)
    assert blocks + facts.output_bytes + facts.other_bytes == shape.read_bytes
    assert facts.parameters - shape.block_weights == pytest.approx(2 * 2048 * 512 + 2048, rel=0.01)
    *_, (last, offset) = offsets(shape, start)
    assert 0 <= path.stat().st_size - (offset + last.size_bytes) < 32
    assert path.stat().st_blocks * 512 < 1_000_000


async def test_the_network_between_processes_is_the_loopback(tmp_path: Path) -> None:
    assert await asyncio.to_thread(network_bytes_s, ["127.0.0.1:9338", "[::1]:9338"]) == 10**9 * 1.2
    assert await asyncio.to_thread(network_bytes_s, []) == 0
    assert await asyncio.to_thread(network_bytes_s, ["a-name:9338", "nonsense"]) == 0
    watch = NetworkWatch()
    await watch.look(frozenset({"127.0.0.1:9338"}))
    assert watch.bytes_s == 1_200_000_000


async def test_the_brain_holds_its_plan_against_what_the_engine_did(
    engine: Place, tmp_path: Path
) -> None:
    paths = under(tmp_path)
    server = engine.binary(SERVER)
    assert server is not None
    socket = paths.engine_socket(MODEL.name)
    socket.parent.mkdir(parents=True)
    metrics = BrainMetrics(paths, lambda: STATUS)
    # Nobody answers yet.
    assert b"meshd_plan_error_ratio{" not in (await metrics.text(""))[0]
    async with llama(server, socket, ["--metrics"]) as one, guard(paths.guard_socket("g")):
        body = b'{"prompt": "a", "n_predict": 64, "temperature": 0, "ignore_eos": true}'
        await one.post("/completion", body)
        text = (await BrainMetrics(paths, lambda: STATUS).text(""))[0].decode()
        told = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        actual = float(told['meshd_decode_tokens_per_second{model="big"}'])
        error = float(told['meshd_plan_error_ratio{model="big"}'])
        assert actual > 0
        assert error == pytest.approx(actual / MODEL.tokens_s - 1)
        assert told['meshd_guard_calls_total{guard="g",peer="abc"}'] == "12.0"
        # One that is frozen costs a scrape its deadline, and the others are told.
        one.stop()
        try:
            async with asyncio.timeout(10):
                text = (await BrainMetrics(paths, lambda: STATUS).text(""))[0].decode()
        finally:
            one.go_on()
        assert "meshd_plan_error_ratio{" not in text
        assert 'meshd_guard_calls_total{guard="g",peer="abc"}' in text


@asynccontextmanager
async def guard(socket: Path) -> AsyncIterator[None]:
    """Says what a guard says."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=GUARD)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    runner = web.AppRunner(app)
    await runner.setup()
    socket.parent.mkdir(parents=True)
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()


def test_the_verb_measures_and_remembers(engine: Place, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    # One thread: two that wait for each other on a busy machine take a minute.
    command = [
        "taskset",
        "-c",
        str(min(os.sched_getaffinity(0))),
        sys.executable,
        "-m",
        "meshd.cli.main",
        "--root",
        str(tmp_path),
        "bench",
    ]
    environment = {**os.environ, "MESHD_ENGINE_ROOT": str(engine.root)}

    def said(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=110, env=environment
        )

    nothing = said()
    assert (nothing.returncode, nothing.stdout[:12]) == (1, "not measured")
    done = said("--now")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ram: reads ")
    assert said().stdout == done.stdout
    assert said("--json").stdout.lstrip().startswith("[")
    (tmp_path / "state/speeds.json").write_text("{")
    assert said().returncode == 1
