"""Which tensors are cached: of blocks, large ones, of its own layers."""

from __future__ import annotations

from gguf import GGMLQuantizationType

from meshd.models.gguf_header import Header, Tensor
from meshd.seeding.tensor_list import THRESHOLD_BYTES, block_bytes, of_layers, seedable

LARGE = THRESHOLD_BYTES + 4


def header(*tensors: tuple[str, int], data_offset: int = 1000) -> Header:
    offset, found = 0, []
    for name, size in tensors:
        found.append(Tensor(name, (size // 4,), GGMLQuantizationType.F32, offset, size))
        offset += size
    return Header(3, {}, tuple(found), data_offset, data_offset + offset)


def test_what_stays_on_the_host_or_is_always_sent_is_not_listed() -> None:
    found = seedable(
        [
            header(
                ("token_embd.weight", LARGE),
                ("output.weight", LARGE),
                ("per_layer_token_embd.weight", LARGE),
                ("blk.1.ffn_up.weight", LARGE),
                ("blk.0.attn_k.weight", THRESHOLD_BYTES),
                ("blk.0.ffn_up.weight", LARGE),
                ("v.blk.0.ffn_up.weight", LARGE),
            )
        ]
    )
    assert [(one.name, one.layer) for one in found] == [
        ("blk.0.ffn_up.weight", 0),
        ("blk.1.ffn_up.weight", 1),
    ]


def test_places_of_a_split_file_s_parts() -> None:
    parts = [
        header(("token_embd.weight", LARGE), ("blk.0.a.weight", LARGE), data_offset=64),
        header(("blk.1.a.weight", 2 * LARGE), ("blk.0.b.weight", LARGE), data_offset=96),
    ]
    places = {one.name: (one.file, one.offset, one.size_bytes) for one in seedable(parts)}
    assert places == {
        "blk.0.a.weight": (0, 64 + LARGE, LARGE),
        "blk.1.a.weight": (1, 96, 2 * LARGE),
        "blk.0.b.weight": (1, 96 + 2 * LARGE, LARGE),
    }


def test_only_its_own_layers() -> None:
    one = header(*((f"blk.{layer}.a.weight", LARGE) for layer in range(12)), ("blk.3.n", 8))
    names = [tensor.name for tensor in of_layers(seedable([one]), 2, 3)]
    assert names == ["blk.2.a.weight", "blk.3.a.weight", "blk.4.a.weight"]
    assert block_bytes([one], 2, 3) == 3 * LARGE + 8
