"""What the bounded reader takes, refuses, and says."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from meshd.models.gguf_header import Array, GgufError, read_header
from tests.unit.gguf_bytes import (
    ARRAY,
    F32,
    I32,
    STRING,
    U32,
    U64,
    Model,
    Tensor,
    array,
    lay_out,
    llama,
    text,
    u32,
)


def refused(model: Model, path: Path) -> str:
    model.write(path)
    with pytest.raises(GgufError) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_reads_what_upstreams_writer_writes(file: Path) -> None:
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(3)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_int64("a.negative", -7)
    writer.add_string("a.text", "größer")
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_token_list([f"token {number}" for number in range(1000)])
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 32), dtype=np.float32))
    writer.add_tensor("output.weight", np.zeros((2, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(file)
    upstream = GGUFReader(file)

    assert header.metadata["llama.block_count"] == 3
    assert header.metadata["a.float"] == 0.5
    assert header.metadata["a.bool"] is True
    assert header.metadata["a.negative"] == -7
    assert header.metadata["a.text"] == "größer"
    numbers = header.metadata["a.numbers"]
    assert isinstance(numbers, Array)
    assert numbers.values == (1, 2, 3)
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Array)
    assert (tokens.length, tokens.values) == (1000, None)
    assert header.data_offset == upstream.data_offset
    for ours, theirs in zip(header.tensors, upstream.tensors, strict=True):
        assert ours.name == theirs.name
        assert ours.shape == tuple(theirs.shape)
        assert ours.size_bytes == theirs.n_bytes
        assert header.data_offset + ours.offset == theirs.data_offset


def test_reads_a_header_that_is_longer_than_one_read(file: Path) -> None:
    model = llama(words=200_000)
    model.write(file)
    header = read_header(file)
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Array)
    assert tokens.length == 200_000
    assert [tensor.name for tensor in header.tensors] == [t.name for t in model.tensors]


def test_the_older_version_is_read_alike(file: Path) -> None:
    model = llama()
    newer = read_header(model.write(file))
    model.version = 2
    older = read_header(model.write(file))
    assert (older.metadata, older.tensors) == (newer.metadata, newer.tensors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 0x03000000}, "big-endian"),
        ({"version": 0x02000000}, "big-endian"),
        ({"version": 1}, "version 1"),
        ({"version": 9}, "version 9"),
        ({"magic": b"GGML"}, "not a GGUF"),
        ({"cut": 0}, "ends inside its header"),
        ({"cut": 30}, "ends inside its header"),
        ({"data_bytes": 100}, "cut short"),
        ({"key_count": 2**63}, "metadata keys"),
        ({"tensor_count": 2**63}, "tensors"),
    ],
)
def test_refuses(change: dict[str, object], said: str, file: Path) -> None:
    model = llama()
    for name, value in change.items():
        setattr(model, name, value)
    assert said in refused(model, file)


def test_says_how_much_is_missing(file: Path) -> None:
    model = llama()
    whole = model.write(file).stat().st_size
    model.cut = whole - 1000
    assert "1000 bytes are missing" in refused(model, file)


def test_names_a_git_lfs_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(GgufError, match="Git LFS pointer"):
        read_header(file)


def test_names_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(GgufError, match=str(path)):
            read_header(path)


@pytest.mark.parametrize(
    ("key", "kind", "value", "said"),
    [
        ("a", STRING, struct.pack("<Q", 2**62), "claims"),
        ("a", ARRAY, array(STRING, [], claimed=2**40), "strings"),
        ("a", ARRAY, array(U64, [], claimed=2**61), "numbers, too many"),
        ("a", ARRAY, array(U64, [], claimed=2**20), "ends inside its header"),
        ("a", ARRAY, array(ARRAY, [u32(0)]), "array of arrays"),
        ("a", 99, b"", "unknown value type 99"),
        ("general.alignment", U32, u32(0), "alignment"),
        ("general.alignment", U32, u32(48), "alignment"),
        ("general.alignment", STRING, text("32"), "alignment"),
        ("general.alignment", F32, struct.pack("<f", 32), "alignment"),
        ("llama.block_count", U32, u32(2), "is there twice"),
        ("\x1b[31mred", U32, u32(1), "not printable"),
    ],
)
def test_refuses_the_key(key: str, kind: int, value: bytes, said: str, file: Path) -> None:
    model = llama()
    model.keys.append((key, kind, value))
    assert said in refused(model, file)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (Tensor("t", (0,)), "impossible shape"),
        (Tensor("t", (2**32, 2**31)), "impossible shape"),
        (Tensor("t", (33,), kind=8), "do not divide"),
        (Tensor("t", (32,), kind=4), "unknown type 4"),
        (Tensor("t", (32,), dimensions=5), "5 dimensions"),
        (Tensor("t", (32,), dimensions=0), "0 dimensions"),
        (Tensor("n" * 64, (32,)), "tensor name"),
        (Tensor("blk.0.attn_q.weight", (32,), offset=1 << 20), "is there twice"),
    ],
)
def test_refuses_the_tensor(tensor: Tensor, said: str, file: Path) -> None:
    model = llama()
    tensor.offset = tensor.offset or 1 << 20
    model.tensors.append(tensor)
    model.data_bytes = 4 << 20
    assert said in refused(model, file)


def test_refuses_overlap_and_misalignment(file: Path) -> None:
    model = llama()
    model.tensors[1].offset = 0
    assert "overlap" in refused(model, file)
    model = llama()
    model.tensors[1].offset += 1
    assert "not aligned" in refused(model, file)


def test_a_gap_between_tensors_is_harmless(file: Path) -> None:
    model = lay_out(llama())
    model.tensors[-1].offset += 64
    assert len(read_header(model.write(file)).tensors) == len(model.tensors)


def test_quantised_sizes_are_upstreams(file: Path) -> None:
    model = llama()
    model.tensors = [Tensor("t", (64, 3), kind=8)]
    (tensor,) = read_header(model.write(file)).tensors
    assert tensor.size_bytes == 3 * 2 * 34


def test_text_that_is_no_utf8_does_not_stop_it(file: Path) -> None:
    model = llama()
    model.set("general.name", STRING, text(b"caf\xe9"))
    model.set("tokenizer.ggml.scores", ARRAY, array(I32, [u32(1)]))
    assert read_header(model.write(file)).metadata["general.name"] == "caf\ufffd"
