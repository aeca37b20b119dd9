"""The memory estimate's rules; tests/wire/test_memory_oracle.py holds it against the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.models.facts import GgufFacts
from meshd.models.gguf_facts import read_facts
from meshd.planner.kv import CELL_TYPES, ContextSettings, cells
from meshd.planner.memory import DeviceMemory, estimate, fits
from meshd.planner.placement import HOST, on_host, solo, split
from tools.memory_table.models import MODELS
from tools.memory_table.sparse import write

MIB = 1 << 20
SHAPES = {shape.name: shape for shape in MODELS}
NAMES = (
    "llama-3.2-3b",
    "qwen3-30b-a3b",
    "glm-4.5-air",
    "gemma-3-27b",
    "gpt-oss-20b",
    "deepseek-v2-lite",
    "qwen3-next-80b-a3b",
    "falcon-h1-7b",
)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFacts]:
    folder = tmp_path_factory.mktemp("sparse")
    return {
        name: read_facts(write(replace(SHAPES[name], vocabulary=4096), folder)) for name in NAMES
    }


def by_device(memory: tuple[DeviceMemory, ...]) -> dict[str, DeviceMemory]:
    return {each.device: each for each in memory}


SETTINGS = ContextSettings(8192)


def test_kv_of_a_dense_model_is_its_rows_times_its_cells(facts: dict[str, GgufFacts]) -> None:
    model = facts["llama-3.2-3b"]
    (host,) = estimate(model, on_host(model), SETTINGS)
    assert host.kv_bytes == 28 * 2 * 1024 * 2 * 8192
    (quantised,) = estimate(
        model, on_host(model), replace(SETTINGS, key_type="q8_0", value_type="q4_0")
    )
    assert quantised.kv_bytes == 28 * 1024 * 8192 * (34 + 18) // 32


def test_cells_are_padded_and_divided_among_slots(facts: dict[str, GgufFacts]) -> None:
    model = facts["llama-3.2-3b"]
    assert cells(model, ContextSettings(1), sliding=False) == 256
    assert cells(model, ContextSettings(257), sliding=False) == 512
    assert cells(model, ContextSettings(8192, 4), sliding=False) == 2048
    assert cells(model, ContextSettings(8192, 3), sliding=False) == 2816
    assert cells(model, ContextSettings(8192, 4, unified=True), sliding=False) == 8192


def test_sliding_layers_keep_a_window_and_a_batch(facts: dict[str, GgufFacts]) -> None:
    model = facts["gemma-3-27b"]
    assert cells(model, SETTINGS, sliding=True) == 1024 + 512
    assert cells(model, replace(SETTINGS, slots=2), sliding=True) == 1024 + 512
    assert cells(model, replace(SETTINGS, slots=2, unified=True), sliding=True) == 2048 + 512
    assert cells(model, replace(SETTINGS, swa_full=True), sliding=True) == 8192
    assert cells(model, replace(SETTINGS, context=512), sliding=True) == 512


def test_latent_rows_are_the_whole_cache(facts: dict[str, GgufFacts]) -> None:
    model = facts["deepseek-v2-lite"]
    (host,) = estimate(model, on_host(model), SETTINGS)
    assert host.kv_bytes == 27 * 576 * 2 * 8192


def test_recurrent_state_grows_with_slots_not_with_context(facts: dict[str, GgufFacts]) -> None:
    model = facts["qwen3-next-80b-a3b"]

    def kv(context: int, slots: int) -> int:
        (host,) = estimate(model, on_host(model), ContextSettings(context, slots))
        return host.kv_bytes

    state = sum(layer.recurrent_bytes for layer in model.layers)
    assert state > 0
    assert kv(8192, 2) - kv(8192, 1) == state
    assert kv(16384, 1) - kv(8192, 1) == 12 * 2 * 512 * 2 * 8192


def test_a_prediction_block_takes_nothing(facts: dict[str, GgufFacts]) -> None:
    model = facts["glm-4.5-air"]
    (host,) = estimate(model, on_host(model), SETTINGS)
    assert host.weights_bytes < model.file_bytes - model.layers[-1].weight_bytes
    assert host.kv_bytes == 46 * 2 * 1024 * 2 * 8192


def test_the_embedding_stays_on_the_host_and_a_tied_output_is_a_second_copy(
    facts: dict[str, GgufFacts],
) -> None:
    model = facts["llama-3.2-3b"]
    assert model.tied_embeddings
    (alone,) = estimate(model, on_host(model), SETTINGS)
    on_gpu = by_device(estimate(model, solo(model, "gpu"), SETTINGS))
    assert on_gpu[HOST].weights_bytes == model.embedding_bytes
    total = on_gpu[HOST].weights_bytes + on_gpu["gpu"].weights_bytes
    assert total - alone.weights_bytes == model.output_bytes


def test_experts_in_ram_leave_only_their_own_bytes(facts: dict[str, GgufFacts]) -> None:
    model = facts["qwen3-30b-a3b"]
    whole = by_device(estimate(model, solo(model, "gpu"), SETTINGS))
    moved = by_device(estimate(model, solo(model, "gpu", n_cpu_moe=20), SETTINGS))
    experts = sum(layer.expert_bytes for layer in model.layers[:20])
    assert whole["gpu"].weights_bytes - moved["gpu"].weights_bytes == experts
    assert moved[HOST].weights_bytes - whole[HOST].weights_bytes == experts
    assert moved["gpu"].kv_bytes == whole["gpu"].kv_bytes


def test_split_puts_layers_as_the_engine_does(facts: dict[str, GgufFacts]) -> None:
    model = facts["llama-3.2-3b"]  # 28 layers, and the output counts as one more
    placed = split(model, ("a", "b"), proportions=(3, 2))
    assert [placed.layers.count(device) for device in ("a", "b")] == [18, 10]
    assert placed.output == "b"
    assert placed.pipelined
    partly = split(model, ("a",), gpu_layers=10)
    assert partly.layers == (HOST,) * 19 + ("a",) * 9
    assert (partly.output, partly.pipelined) == ("a", False)
    assert set(split(model, ("a", "b"), proportions=(0, 1)).layers) == {"b"}
    assert set(split(model, ("a", "b"), gpu_layers=0).layers) == {HOST}
    with pytest.raises(ValueError, match="proportions"):
        split(model, ("a", "b"), proportions=(1,))
    with pytest.raises(ValueError, match="layers placed"):
        estimate(facts["glm-4.5-air"], placed, SETTINGS)


def test_a_server_wants_less_for_logits_than_a_whole_batch(facts: dict[str, GgufFacts]) -> None:
    big = replace(facts["llama-3.2-3b"], vocabulary_size=128256)
    (server,) = estimate(big, on_host(big), SETTINGS)
    (batch,) = estimate(big, on_host(big), replace(SETTINGS, outputs=512))
    assert batch.compute_bytes - server.compute_bytes > 150 * MIB


def test_the_reserve_is_each_devices_own(facts: dict[str, GgufFacts]) -> None:
    model = facts["llama-3.2-3b"]
    memory = by_device(
        estimate(
            model,
            split(model, ("a", "b")),
            SETTINGS,
            vram_reserve_bytes=100 * MIB,
            ram_reserve_bytes=200 * MIB,
        )
    )
    assert [memory[device].reserve_bytes // MIB for device in ("a", "b", HOST)] == [100, 100, 200]
    assert memory["a"].total_bytes - memory["a"].engine_bytes == 100 * MIB


def test_what_one_device_lacks_no_other_lends(facts: dict[str, GgufFacts]) -> None:
    model = facts["llama-3.2-3b"]
    needs = estimate(model, split(model, ("a", "b")), SETTINGS)
    enough = {need.device: need.total_bytes for need in needs}
    assert fits(needs, enough)
    assert not fits(needs, enough | {"a": enough["a"] - 1, "b": 1 << 40})
    assert not fits(needs, {HOST: 1 << 50})


@pytest.mark.parametrize(
    "wrong",
    [{"context": 0}, {"slots": 0}, {"ubatch": -1}, {"outputs": 0}, {"key_type": "q3_K"}],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"positive|is none of"):
        replace(SETTINGS, **wrong)  # type: ignore[arg-type]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(NAMES),
    context=st.integers(1, 1 << 18),
    slots=st.integers(1, 16),
    unified=st.booleans(),
    kind=st.sampled_from(sorted(CELL_TYPES)),
    flash=st.booleans(),
    ubatch=st.integers(1, 4096),
    devices=st.integers(1, 5),
    gpu_layers=st.one_of(st.none(), st.integers(0, 99)),
    n_cpu_moe=st.integers(0, 99),
)
def test_nothing_is_lost_or_negative_wherever_it_lies(
    facts: dict[str, GgufFacts],
    name: str,
    context: int,
    slots: int,
    unified: bool,
    kind: str,
    flash: bool,
    ubatch: int,
    devices: int,
    gpu_layers: int | None,
    n_cpu_moe: int,
) -> None:
    model = facts[name]
    wanted = ContextSettings(
        context, slots, unified, kind, kind, flash_attention=flash, ubatch=ubatch
    )
    names = [f"gpu{number}" for number in range(devices)]
    placement = split(model, names, gpu_layers=gpu_layers, n_cpu_moe=n_cpu_moe)
    spread = estimate(model, placement, wanted)
    (alone,) = estimate(model, on_host(model), wanted)

    assert [memory.device for memory in spread] == [*names, HOST]
    assert all(min(m.weights_bytes, m.kv_bytes, m.compute_bytes) >= 0 for m in spread)
    assert sum(memory.kv_bytes for memory in spread) == alone.kv_bytes
    copied = sum(memory.weights_bytes for memory in spread) - alone.weights_bytes
    assert copied == (model.output_bytes if copied else 0)
    more = estimate(model, placement, replace(wanted, context=context + 4096))
    for before, after in zip(spread, more, strict=True):
        assert after.total_bytes >= before.total_bytes


def test_a_gpu_holds_a_copy_of_the_host_weights_that_it_works_on(
    facts: dict[str, GgufFacts],
) -> None:
    model = facts["qwen3-30b-a3b"]
    placement = split(model, ("a", "b"), gpu_layers=20)

    def compute(**changes: bool | int) -> dict[str, int]:
        wanted = replace(SETTINGS, **changes)  # type: ignore[arg-type]
        return {m.device: m.compute_bytes for m in estimate(model, placement, wanted)}

    with_copy, without = compute(), compute(op_offload=False)
    largest = max(layer.largest_tensor_bytes for layer in model.layers)
    assert with_copy["a"] - without["a"] == largest
    assert with_copy["b"] == without["b"]  # the first device does it
    assert compute(ubatch=16) == compute(ubatch=16, op_offload=False)
    whole = solo(model, "a")
    quiet = replace(SETTINGS, op_offload=False)
    assert estimate(model, whole, SETTINGS) == estimate(model, whole, quiet)
