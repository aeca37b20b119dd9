"""From headers to facts, on the shapes of real models and on broken ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from meshd.errors import UserError
from meshd.models.gguf_facts import read_facts
from meshd.models.gguf_header import GgufError
from tests.unit.gguf_bytes import ARRAY, I32, STRING, U32, Tensor, array, lay_out, llama, text, u32
from tools.memory_table.models import MODELS
from tools.memory_table.sparse import size_bytes, tensors, write

SHAPES = {shape.name: shape for shape in MODELS}


def shallow(name: str, layers: int, folder: Path) -> Path:
    return write(replace(SHAPES[name], layers=layers, vocabulary=1024), folder)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_a_dense_model(tmp_path: Path) -> None:
    path = shallow("llama-3.3-70b", 3, tmp_path)
    facts = read_facts(path)
    assert facts.files == (str(path),)
    assert facts.architecture == "llama"
    assert facts.quantisation == "Q4_K_M"
    assert (facts.heads, facts.key_length, facts.value_length) == (64, 128, 128)
    assert facts.context_train == 131072
    assert facts.vocabulary_size == 1024
    assert not facts.moe
    assert not facts.tied_embeddings
    assert len(facts.layers) == 3
    for layer in facts.layers:
        assert (layer.kv_heads, layer.key_elements, layer.value_elements) == (8, 1024, 1024)
        assert layer.expert_bytes == 0
        assert not layer.sliding


@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.name)
def test_every_byte_of_a_model_is_in_one_place(shape: object, tmp_path: Path) -> None:
    small = replace(SHAPES[shape.name], layers=5, vocabulary=512)  # type: ignore[attr-defined]
    facts = read_facts(write(small, tmp_path))
    placed = facts.embedding_bytes + facts.other_bytes
    placed += 0 if facts.tied_embeddings else facts.output_bytes
    placed += sum(layer.weight_bytes for layer in facts.layers)
    assert placed == sum(size_bytes(tensor) for tensor in tensors(small))
    experts = sum(size_bytes(t) for t in tensors(small) if "_exps.weight" in t[0])
    biases = sum(size_bytes(t) for t in tensors(small) if "_exps.bias" in t[0])
    assert sum(layer.expert_bytes for layer in facts.layers) == experts + biases
    assert facts.moe == bool(small.experts)


def test_windows(tmp_path: Path) -> None:
    def pattern(name: str, layers: int) -> str:
        facts = read_facts(shallow(name, layers, tmp_path))
        return "".join("w" if layer.sliding else "F" for layer in facts.layers)

    assert pattern("gemma-2-9b", 4) == "wFwF"
    assert pattern("gemma-3-27b", 7) == "wwwwwFw"
    assert pattern("gpt-oss-20b", 4) == "wFwF"
    assert pattern("llama-4-scout", 5) == "wwwFw"
    assert pattern("command-r7b", 4) == "wwwF"
    assert pattern("phi-4", 4) == "FFFF"
    assert read_facts(shallow("gpt-oss-20b", 2, tmp_path)).sliding_window == 128
    # the engine takes 8192 for llama4 whether the file says so or not
    assert read_facts(shallow("llama-4-scout", 4, tmp_path)).sliding_window == 8192


def test_latent_attention_caches_one_row_and_no_values(tmp_path: Path) -> None:
    facts = read_facts(shallow("deepseek-v2-lite", 3, tmp_path))
    assert facts.mla_key_length == 192
    layer = facts.layers[1]
    assert (layer.kv_heads, layer.key_elements, layer.value_elements) == (1, 576, 0)
    assert (facts.experts, facts.experts_used) == (64, 6)
    assert facts.layers[0].expert_bytes == 0


def test_recurrent_layers_have_a_state_and_no_cache(tmp_path: Path) -> None:
    hybrid = read_facts(shallow("qwen3-next-80b-a3b", 4, tmp_path))
    state = 4 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096)
    assert [layer.recurrent_bytes for layer in hybrid.layers] == [state] * 3 + [0]
    assert [layer.kv_heads for layer in hybrid.layers] == [0, 0, 0, 2]
    both = read_facts(shallow("falcon-h1-7b", 2, tmp_path))
    assert all(layer.recurrent_bytes and layer.key_elements for layer in both.layers)


def test_prediction_blocks_are_marked(tmp_path: Path) -> None:
    facts = read_facts(shallow("glm-4.5-air", 3, tmp_path))
    assert [layer.prediction for layer in facts.layers] == [False, False, False, True]
    assert facts.layers[-1].key_elements == 0


def test_kv_heads_can_differ_by_layer(file: Path) -> None:
    model = llama(layers=3)
    heads = [u32(4), u32(0), u32(2)]
    model.set("llama.attention.head_count_kv", ARRAY, array(U32, heads))
    facts = read_facts(model.write(file))
    assert [layer.kv_heads for layer in facts.layers] == [4, 0, 2]
    assert [layer.key_elements for layer in facts.layers] == [64, 0, 32]


def test_the_vocabulary_identifies_the_tokenizer(file: Path) -> None:
    def identity(**changes: bytes) -> str:
        model = llama()
        for key, value in changes.items():
            model.set(f"tokenizer.ggml.{key}", ARRAY if value[:1] != b"S" else STRING, value)
        return read_facts(model.write(file)).vocabulary_sha256

    same = identity()
    assert len(same) == 64
    assert identity() == same
    assert read_facts(llama(layers=5, width=32).write(file)).vocabulary_sha256 == same
    others = {
        identity(tokens=array(STRING, [text(f"T{number}") for number in range(40)])),
        identity(token_type=array(I32, [u32(2)] * 40)),
        identity(merges=array(STRING, [text("t 2")])),
        read_facts(llama(words=41).write(file)).vocabulary_sha256,
    }
    model = llama()
    model.set("tokenizer.ggml.pre", STRING, text("llama-bpe"))
    others.add(read_facts(model.write(file)).vocabulary_sha256)
    assert same not in others
    assert len(others) == 5


def test_embedding_models_say_how_they_pool(file: Path) -> None:
    assert read_facts(llama().write(file)).pooling is None
    assert read_facts(llama(pooling_type=1).write(file)).pooling == "mean"
    assert read_facts(llama(pooling_type=3).write(file)).pooling == "last"


def test_an_encoder_has_neither_cache_nor_output_layer(file: Path) -> None:
    model = llama()
    for key, kind, value in list(model.keys):
        if key.startswith("llama."):
            model.drop(key)
            model.set(key.replace("llama.", "bert."), kind, value)
    model.set("general.architecture", STRING, text("bert"))
    facts = read_facts(model.write(file))
    assert facts.output_bytes == 0
    assert all(layer.key_elements == 0 for layer in facts.layers)


def test_a_projector_is_no_language_model(file: Path) -> None:
    model = llama()
    model.set("general.architecture", STRING, text("clip"))
    model.tensors = lay_out(llama()).tensors[:2]
    facts = read_facts(model.write(file))
    assert facts.mmproj
    assert facts.layers == ()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("llama.block_count", u32(0), "not 1 to 512"),
        ("llama.block_count", u32(4_000_000_000), "should be a number"),
        ("llama.block_count", u32(1), "there is blk.1"),
        ("llama.block_count", u32(3), "blk.2 has no tensors, of 3 blocks"),
        ("llama.embedding_length", None, "is missing"),
        ("llama.context_length", None, "is missing"),
        ("general.architecture", None, "general.architecture"),
    ],
)
def test_refuses(key: str, value: bytes | None, said: str, file: Path) -> None:
    model = llama()
    model.drop(key)
    if value is not None:
        model.set(key, U32, value)
    with pytest.raises(GgufError, match=said) as caught:
        read_facts(model.write(file))
    assert isinstance(caught.value, UserError)


def test_refuses_too_short_a_list_of_heads(file: Path) -> None:
    model = llama(layers=2)
    model.set("llama.attention.head_count_kv", ARRAY, array(U32, [u32(2)]))
    with pytest.raises(GgufError, match="should have 2 elements, not 1"):
        read_facts(model.write(file))


def parts_of(folder: Path, count: int = 3) -> list[Path]:
    """One model cut into `count` files by its tensors."""
    whole = llama(layers=2)
    cuts = [whole.tensors[number::count] for number in range(count)]
    paths = []
    for number, mine in enumerate(cuts):
        part = llama(layers=2)
        if number:
            part.keys = []
        part.tensors = [Tensor(t.name, t.shape) for t in mine]
        part.set("split.no", U32, u32(number))
        part.set("split.count", U32, u32(count))
        part.set("split.tensors.count", I32, u32(len(whole.tensors)))
        name = f"big-{number + 1:05}-of-{count:05}.gguf"
        paths.append(lay_out(part).write(folder / name))
    return paths


def test_a_split_is_one_model_whichever_part_is_named(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    facts = read_facts(parts[0])
    assert facts.files == tuple(str(part) for part in parts)
    assert facts.file_bytes == sum(part.stat().st_size for part in parts)
    whole = read_facts(llama(layers=2).write(tmp_path / "whole.gguf"))
    assert facts.layers == whole.layers
    assert facts.parameters == whole.parameters
    assert read_facts(parts[2]) == facts


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    parts[1].unlink()
    with pytest.raises(GgufError, match=r"1 of 3 parts are missing: big-00002-of-00003\.gguf"):
        read_facts(parts[0])


def test_parts_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    parts = parts_of(tmp_path)
    parts[1].rename(tmp_path / "x")
    parts[2].rename(parts[1])
    (tmp_path / "x").rename(parts[2])
    with pytest.raises(GgufError, match="says that it is part 2"):
        read_facts(parts[0])


def test_a_renamed_part_is_refused(tmp_path: Path) -> None:
    alone = parts_of(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(GgufError, match="part of a split of 3 files"):
        read_facts(alone)


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, 2)
    second = llama(layers=2)
    second.keys = []
    second.tensors = lay_out(second).tensors[:3]
    second.write(parts[1])
    with pytest.raises(GgufError, match=r"two parts hold|should hold"):
        read_facts(parts[0])


@pytest.mark.parametrize("name", ["a-00000-of-00002", "a-00003-of-00002", "a-00001-of-99999"])
def test_impossible_part_numbers_are_refused(name: str, tmp_path: Path) -> None:
    path = llama().write(tmp_path / f"{name}.gguf")
    with pytest.raises(GgufError, match="its name claims part"):
        read_facts(path)
