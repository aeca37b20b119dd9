"""What llama-bench says, what becomes of it, and how long it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.engine.build import Binary, EngineBuild
from meshd.node.speed import (
    FILE_MAX_BYTES,
    RAM,
    Speed,
    bandwidth_bytes_s,
    better,
    decode,
    encode,
    flops_s,
    keys,
    parse_bench,
    rounded,
    valid,
)
from meshd.node.speed_bench import gpu_task, ram_tasks, tasks_of
from tests.unit import worlds

BUILD = EngineBuild(
    origin="root",
    root="/engine",
    build=11669,
    version="0.7.0",
    package="1:0.7.0+dfsg-2",
    ggml="0.27.0",
    rpc_protocol=(8, 0, 0),
    binaries=(Binary("llama-bench", "/engine/llama-bench", "ab" * 32),),
    backends=("RPC", "CPU", "CUDA"),
    help_text="",
)
# Two lines as b11669 prints them, shortened by fields that nobody reads.
SAID = (
    '{"build_commit": "Debian", "n_threads": 2, "n_prompt": 64, "n_gen": 0, "avg_ts": 401.5, '
    '"samples_ns": [1, 2], "samples_ts": [ 399.1, 405.4 ]}\n'
    '{"build_commit": "Debian", "n_threads": 2, "n_prompt": 0, "n_gen": 6, "avg_ts": 40.1, '
    '"samples_ns": [1, 2, 3], "samples_ts": [ 47.1, 31.0, 46.9 ]}\n'
)
KNOWN = Speed(RAM, "k", 13_000_000_000, 410_000_000_000, 9_000_000_000, 230_000_000_000)


def test_the_two_tests_of_a_run_are_read() -> None:
    prompt, decoding = parse_bench(SAID)
    assert (prompt.prompt, prompt.best, prompt.calm) == (True, 405.4, True)
    assert (decoding.prompt, decoding.best) == (False, 47.1)


def test_samples_far_apart_are_of_a_busy_machine() -> None:
    (sample,) = parse_bench('{"n_prompt": 0, "n_gen": 6, "samples_ts": [47.1, 31.0, 30.0]}')
    assert not sample.calm


@pytest.mark.parametrize(
    "text",
    [
        "ggml: something else\n",
        '{"n_prompt": 64, "n_gen": 0}',
        '{"n_prompt": 64, "n_gen": 0, "samples_ts": []}',
        '{"n_prompt": 64, "n_gen": 0, "samples_ts": [0.0]}',
        '{"n_prompt": 64, "n_gen": 0, "samples_ts": [-1.5]}',
        '{"n_prompt": 64, "n_gen": 0, "samples_ts": ["fast"]}',
    ],
)
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="llama-bench"):
        parse_bench(text)


def test_bandwidth_is_bytes_over_time_less_what_layers_cost() -> None:
    # 50 ms a token, of which 10 layers cost 0.2.
    assert bandwidth_bytes_s(498_000_000, 10, 20.0) == 10_000_000_000
    # However fast: never less than half of the time is reading.
    assert bandwidth_bytes_s(1_000_000, 100, 1000.0) == 2_000_000_000
    assert flops_s(500_000_000, 406.0) == 410_000_000_000


@given(st.floats(100, 1e18))
def test_two_digits_are_left(value: float) -> None:
    found = rounded(value)
    assert abs(found - value) <= value * 0.051
    assert len(str(found).rstrip("0")) <= 2


def test_noise_is_no_change() -> None:
    assert rounded(12_612_345_678) == rounded(12_987_654_321) == 13_000_000_000


def test_a_speed_is_of_its_hardware_and_its_engine() -> None:
    gpu = worlds.gpu()
    machine = worlds.hardware(gpu)
    wanted = keys(machine, machine.gpus, BUILD)
    speeds = tuple(replace(KNOWN, device=device, key=key) for device, key in wanted.items())
    assert set(valid(speeds, wanted)) == {RAM, gpu.id}
    newer = replace(BUILD, binaries=(replace(BUILD.binaries[0], sha256="cd" * 32),))
    assert valid(speeds, keys(machine, machine.gpus, newer)) == {}
    other = replace(machine, cpu=replace(machine.cpu, physical_cores=4))
    assert set(valid(speeds, keys(other, machine.gpus, BUILD))) == {gpu.id}
    driver = replace(gpu, driver="581.1")
    assert set(valid(speeds, keys(machine, (driver,), BUILD))) == {RAM}
    # Free memory comes and goes; it makes no other machine.
    fuller = replace(machine, ram=replace(machine.ram, available_bytes=1))
    assert set(valid(speeds, keys(fuller, (replace(gpu, free_bytes=1),), BUILD))) == {RAM, gpu.id}


def test_a_calm_measurement_stays() -> None:
    disturbed = replace(KNOWN, bandwidth_bytes_s=5, calm=False)
    assert better(KNOWN, disturbed) is KNOWN
    assert better(disturbed, KNOWN) is KNOWN
    faster = replace(disturbed, bandwidth_bytes_s=6)
    assert better(disturbed, faster) is faster
    assert better(faster, disturbed) is faster
    assert better(replace(KNOWN, key="other"), disturbed) is disturbed


def test_what_was_written_is_read() -> None:
    assert decode(encode((KNOWN,))) == (KNOWN,)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        encode((KNOWN,))[:-9],
        encode((KNOWN,)).replace(b'"schema":1', b'"schema":2'),
        encode((replace(KNOWN, flops_s=-1),)),
        encode((replace(KNOWN, bandwidth_bytes_s=2**62),)),
        b" " * (FILE_MAX_BYTES + 1),
    ],
)
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decode(data)


def test_the_model_exceeds_the_cache_as_far_as_memory_goes() -> None:
    machine = worlds.hardware(ram_gib=64)
    own, lent = ram_tasks(machine, BUILD, 0)
    assert (own.lent, lent.lent) == (False, True)
    assert own.shape == lent.shape
    assert 200e6 < own.shape.read_bytes < 400e6
    (large, _) = ram_tasks(machine, BUILD, 300 * worlds.MIB)
    assert large.shape.read_bytes > 300 * worlds.MIB
    (huge, _) = ram_tasks(machine, BUILD, 10**12)
    assert huge.shape.read_bytes < 700e6
    (small, _) = ram_tasks(worlds.hardware(ram_gib=0.5), BUILD, 10**12)
    assert small.shape.read_bytes < 128e6


def test_a_gpu_is_measured_with_what_it_has_room_for() -> None:
    gpu = worlds.gpu(free_gib=23)
    machine = worlds.hardware(gpu)
    task = gpu_task(gpu, machine, BUILD)
    assert task is not None
    assert task.shape.layers == 32
    assert task.arguments[-2:] == ("-dev", "CUDA0")
    assert task.environment == (("CUDA_VISIBLE_DEVICES", gpu.id),)
    full = replace(gpu, free_bytes=2 * worlds.GIB)
    task = gpu_task(full, worlds.hardware(full), BUILD)
    assert task is not None
    assert task.shape.read_bytes < 1.1 * worlds.GIB
    assert gpu_task(replace(gpu, free_bytes=worlds.GIB // 2), machine, BUILD) is None


def test_a_gpu_that_no_backend_drives_is_not_measured() -> None:
    gpu = worlds.gpu()
    machine = worlds.hardware(gpu)
    gpus = {gpu.id: gpu}
    assert tasks_of(machine, gpus, BUILD, 0, gpu.id)
    assert tasks_of(machine, gpus, replace(BUILD, backends=("CPU",)), 0, gpu.id) == ()
    assert tasks_of(machine, {}, BUILD, 0, "GPU-gone") == ()
