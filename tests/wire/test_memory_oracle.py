"""The memory estimate against a real engine; `make bench-memory` does it for many more models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshd import paths
from meshd.engine.locate import Place
from meshd.experts.shard_writer import write_shard
from meshd.models.facts import GgufFacts
from meshd.models.gguf_facts import read_facts
from meshd.planner.kv import ContextSettings
from meshd.planner.memory import DeviceMemory, estimate
from meshd.planner.placement import on_host, solo, split
from meshd.planner.shard_facts import shard_facts
from tools.memory_table.cases import BATCH, Split
from tools.memory_table.models import MODELS
from tools.memory_table.oracle import MIB, Reported, fit_params, loaded, rpc_servers
from tools.memory_table.sparse import write

# True but for the vocabulary, whose writing and loading would take most of the time.
SHAPES = {shape.name: replace(shape, vocabulary=16384) for shape in MODELS}
TOLERANCE = 0.05
ROUNDING_BYTES = 3 * MIB  # fit-params rounds each of three figures down

# RPC devices, the stand-ins for GPUs, do not work on host weights.
ONE = ContextSettings(8192, 1, batch=BATCH, outputs=BATCH, op_offload=False)
FOUR = replace(ONE, context=32768, slots=4, key_type="q8_0", value_type="q8_0")


@pytest.fixture(scope="module")
def endpoints(engine: Place) -> Iterator[tuple[str, ...]]:
    with rpc_servers(engine, 2) as started:
        yield started


def agree(ours: tuple[DeviceMemory, ...], theirs: tuple[Reported, ...]) -> None:
    assert len(ours) == len(theirs)
    for mine, real in zip(ours, theirs, strict=True):
        difference = abs(mine.engine_bytes - real.total_bytes)
        assert difference <= TOLERANCE * real.total_bytes + ROUNDING_BYTES, (mine, real)
        assert abs(mine.weights_bytes - real.weights_bytes) <= ROUNDING_BYTES, (mine, real)
        assert abs(mine.kv_bytes - real.kv_bytes) <= ROUNDING_BYTES, (mine, real)


@pytest.mark.parametrize("settings", [ONE, FOUR, replace(ONE, flash_attention=False)])
@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gemma-3-27b", "deepseek-v2-lite"])
def test_on_the_host(name: str, settings: ContextSettings, engine: Place, tmp_path: Path) -> None:
    path = write(SHAPES[name], tmp_path)
    facts = read_facts(path)
    theirs = fit_params(engine, path, settings, ["--device", "none"])
    agree(estimate(facts, on_host(facts), settings), theirs)


def test_on_devices(engine: Place, endpoints: tuple[str, ...], tmp_path: Path) -> None:
    path = write(SHAPES["llama-3.2-3b"], tmp_path)
    facts = read_facts(path)
    one = ["--rpc", endpoints[0], "--gpu-layers"]
    agree(estimate(facts, solo(facts, "RPC0"), ONE), fit_params(engine, path, ONE, [*one, "all"]))
    agree(
        estimate(facts, split(facts, ["RPC0"], gpu_layers=10), ONE),
        fit_params(engine, path, ONE, [*one, "10"]),
    )
    both = ["--rpc", ",".join(endpoints), "--gpu-layers", "all", "--tensor-split", "3,2"]
    agree(
        estimate(facts, split(facts, ["RPC0", "RPC1"], proportions=(3, 2)), FOUR),
        fit_params(engine, path, FOUR, both),
    )


def test_with_experts_in_ram(engine: Place, endpoints: tuple[str, ...], tmp_path: Path) -> None:
    path = write(SHAPES["gpt-oss-20b"], tmp_path)
    facts = read_facts(path)
    flags = ["--rpc", endpoints[0], "--gpu-layers", "all", "--n-cpu-moe", "9"]
    ours = estimate(facts, solo(facts, "RPC0", n_cpu_moe=9), ONE)
    agree(ours, fit_params(engine, path, ONE, flags))


@pytest.mark.parametrize("settings", [ONE, FOUR])
@pytest.mark.parametrize("shares", [(1.0,), (0.6,), (0.3, 0.4), (0.5, 0.5)])
@pytest.mark.parametrize("name", ["llama-3.2-3b", "qwen2.5-7b", "qwen3-30b-a3b", "gemma-3-27b"])
def test_of_a_split(
    name: str,
    shares: tuple[float, ...],
    settings: ContextSettings,
    engine: Place,
    endpoints: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """Over one member or two; the host has no GPU, or the last device stands in for one."""
    path = write(SHAPES[name], tmp_path)
    facts = read_facts(path)
    split = Split(shares)
    ours = estimate(facts, split.placement(facts), settings)
    agree(ours, fit_params(engine, path, settings, split.flags(facts, endpoints)))
    if len(shares) > 1:
        split = replace(split, own_gpu=True)
        ours = estimate(facts, split.placement(facts), settings)
        agree(ours, fit_params(engine, path, settings, split.flags(facts, endpoints)))


@pytest.mark.parametrize("name", ["tiny.gguf", "tiny-draft.gguf", "tiny-moe.gguf"])
@pytest.mark.parametrize("settings", [ContextSettings(2048, 2), ContextSettings(4096, 4, True)])
def test_a_real_load_of_a_shipped_model(
    name: str, settings: ContextSettings, engine: Place
) -> None:
    path = paths.shipped("models", name)
    if not path.exists():
        pytest.skip(f"{name} is not shipped here")
    facts = read_facts(path)
    agree(estimate(facts, on_host(facts), settings), (loaded(engine, path, settings),))


def cut(path: Path, experts: int, folder: Path) -> tuple[GgufFacts, Path]:
    """What is predicted of a shard from its source alone, and the shard."""
    facts = read_facts(path)
    selection = tuple(
        tuple(range(0, facts.experts, facts.experts // experts))[:experts]
        if layer.expert_bytes
        else ()
        for layer in facts.layers
    )
    shard = folder / f"{path.stem}-{experts}.gguf"
    write_shard(facts.files, selection, shard, progress=lambda *_: None, stopped=lambda: False)
    predicted, real = shard_facts(facts, experts, (str(shard),)), read_facts(shard)
    # Exact, but for the header, which has keys more, and what it says of itself.
    assert abs(predicted.file_bytes - real.file_bytes) <= 4096 + 32 * 64 * len(facts.layers)
    alike = replace(real, file_bytes=predicted.file_bytes, undividable="", name=predicted.name)
    assert predicted == alike
    return predicted, shard


@pytest.mark.parametrize("experts", [4, 10])
def test_a_real_load_of_a_shard(experts: int, engine: Place, tmp_path: Path) -> None:
    path = paths.shipped("models", "tiny-moe.gguf")
    if not path.exists():
        pytest.skip("tiny-moe.gguf is not shipped here")
    facts, shard = cut(path, experts, tmp_path)
    settings = ContextSettings(2048, 2)
    agree(estimate(facts, on_host(facts), settings), (loaded(engine, shard, settings),))


# Few layers, since each is written out.
@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "glm-4.5-air", "gpt-oss-20b"])
def test_a_shard_of_a_real_width(
    name: str, engine: Place, endpoints: tuple[str, ...], tmp_path: Path
) -> None:
    shape = SHAPES[name]
    path = write(replace(shape, layers=shape.dense_layers + 3), tmp_path)
    facts, shard = cut(path, shape.experts // 8, tmp_path)
    theirs = fit_params(engine, shard, ONE, ["--device", "none"])
    agree(estimate(facts, on_host(facts), ONE), theirs)
    flags = ["--rpc", endpoints[0], "--gpu-layers", "all"]
    agree(estimate(facts, solo(facts, "RPC0"), ONE), fit_params(engine, shard, ONE, flags))
    moved = [*flags, "--n-cpu-moe", "2"]
    ours = estimate(facts, solo(facts, "RPC0", n_cpu_moe=2), ONE)
    agree(ours, fit_params(engine, shard, ONE, moved))
    shard.unlink()  # hundreds of megabytes, which pytest would keep for three runs
