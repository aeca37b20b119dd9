"""Small mixtures of experts with random bytes in them, written by the `gguf` package."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

Q = GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class Mixture:
    """:ivar dense: of the first blocks, how many have no experts. :ivar files: tensors in each file
    at most, 0 for one file.
    """

    blocks: int = 2
    experts: int = 8
    used: int | list[int] = 2
    kind: Q = Q.Q8_0
    dense: int = 0
    groups: int = 0
    width: int = 256
    hidden: int = 256
    alignment: int = 32
    files: int = 0
    architecture: str = "qwen3moe"
    keys: dict[str, int] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], Q]]:
        """Name, shape as numpy has it (the expert first), type."""
        yield "token_embd.weight", (40, self.width), Q.F16
        yield "output_norm.weight", (self.width,), Q.F32
        for number in range(self.blocks):
            yield f"blk.{number}.attn_norm.weight", (self.width,), Q.F32
            if number < self.dense:
                yield f"blk.{number}.ffn_up.weight", (self.hidden, self.width), self.kind
                continue
            count = self.experts
            yield f"blk.{number}.ffn_gate_inp.weight", (count, self.width), Q.F32
            yield f"blk.{number}.exp_probs_b.bias", (count,), Q.F32
            yield f"blk.{number}.ffn_up_exps.weight", (count, self.hidden, self.width), self.kind
            yield f"blk.{number}.ffn_up_exps.bias", (count, self.hidden), Q.F32
            yield f"blk.{number}.ffn_down_exps.weight", (count, self.width, self.hidden), self.kind
            yield f"blk.{number}.ffn_up_shexp.weight", (self.hidden, self.width), self.kind


def write(one: Mixture, path: Path, seed: int = 1) -> tuple[str, ...]:
    """Returns the model's files in order; the same bytes for the same seed."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, one.architecture, split_max_tensors=one.files)
    writer.add_name("mixture")
    writer.add_custom_alignment(one.alignment)
    writer.add_block_count(one.blocks)
    writer.add_context_length(64)
    writer.add_embedding_length(one.width)
    writer.add_feed_forward_length(one.hidden)
    writer.add_head_count(4)
    writer.add_expert_count(one.experts)
    if isinstance(one.used, list):
        writer.add_array(f"{one.architecture}.expert_used_count", one.used)
    else:
        writer.add_expert_used_count(one.used)
    numbers = {"expert_feed_forward_length": one.hidden, **one.keys}
    if one.groups:
        numbers |= {"expert_group_count": one.groups, "expert_group_used_count": one.groups // 2}
    for key, value in numbers.items():
        if value:
            writer.add_uint32(f"{one.architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}ß" for number in range(40)])
    writer.add_token_types([1] * 40)
    writer.add_token_scores([0.5] * 40)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    for name, shape, kind in one.tensors():
        block, block_bytes = GGML_QUANT_SIZES[kind]
        row = shape[-1] // block * block_bytes
        size = math.prod(shape[:-1]) * row
        raw = np.frombuffer(random.bytes(size), np.uint8).reshape(*shape[:-1], row)
        writer.add_tensor(name, raw, raw_shape=raw.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not one.files:
        return (str(path),)
    return tuple(sorted(str(part) for part in path.parent.glob(f"{path.stem}-*-of-*.gguf")))
