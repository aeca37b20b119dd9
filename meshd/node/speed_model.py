"""A model to measure a machine with: a true header, then a hole.

The engine reads a hole as it reads weights, since the kernel gives each page of it memory of its
own; so a file of any size is made in milliseconds and takes no disk. That its numbers are all zero
changes no processor's speed (measured: decoding within 1 % of random weights, prompts within 4 %).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType

_Q = GGMLQuantizationType
_ALIGNMENT = 32  # general.alignment where a file does not name another (gguf's specification)

VOCABULARY = 512
CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Tensor:
    """:ivar shape: innermost first, as the engine counts."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return self.weights // block * block_bytes


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A llama of the quantisation that most people use, Q4_K_M."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int

    @property
    def tensors(self) -> Iterator[Tensor]:
        """In the order of the file."""
        yield Tensor("token_embd.weight", (self.width, VOCABULARY), _Q.Q4_K)
        yield Tensor("output_norm.weight", (self.width,), _Q.F32)
        yield Tensor("output.weight", (self.width, VOCABULARY), _Q.Q6_K)
        for layer in range(self.layers):
            yield from self._block(layer)

    def _block(self, layer: int) -> Iterator[Tensor]:
        width, hidden = self.width, self.feed_forward
        kv = width // self.heads * self.kv_heads
        # As llama-quantize does it, half of these two are kept better.
        better = _Q.Q6_K if layer % 2 else _Q.Q4_K
        for name, shape, kind in (
            ("attn_norm", (width,), _Q.F32),
            ("attn_q", (width, width), _Q.Q4_K),
            ("attn_k", (width, kv), _Q.Q4_K),
            ("attn_v", (width, kv), better),
            ("attn_output", (width, width), _Q.Q4_K),
            ("ffn_norm", (width,), _Q.F32),
            ("ffn_gate", (width, hidden), _Q.Q4_K),
            ("ffn_up", (width, hidden), _Q.Q4_K),
            ("ffn_down", (hidden, width), better),
        ):
            yield Tensor(f"blk.{layer}.{name}.weight", shape, kind)

    @property
    def read_bytes(self) -> int:
        """What a decoded token reads: of the embedding it is one row."""
        return sum(one.size_bytes for one in self.tensors if one.name != "token_embd.weight")

    @property
    def block_weights(self) -> int:
        """Those that every token of a prompt is multiplied with."""
        return sum(one.weights for one in self.tensors if one.name.startswith("blk."))


def write(shape: ModelShape, path: Path) -> int:
    """Write the header, and return the offset of the data after it, which are a hole.

    :raises OSError: it cannot be written, or the file system takes no file of that size.
    """
    writer = GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    _add_tokenizer(writer)
    for tensor in shape.tensors:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape[::-1],
            np.dtype(np.float16),
            tensor.size_bytes,
            raw_dtype=tensor.kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = _aligned(path.stat().st_size)
    with path.open("r+b") as file:
        file.truncate(start + sum(_aligned(tensor.size_bytes) for tensor in shape.tensors))
    return start


def offsets(shape: ModelShape, start: int) -> Iterator[tuple[Tensor, int]]:
    """Where each tensor lies in the file whose data begin at `start`."""
    for tensor in shape.tensors:
        yield tensor, start
        start += _aligned(tensor.size_bytes)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


def _add_tokenizer(writer: GGUFWriter) -> None:
    """A byte-level BPE of the right size whose merges say nothing."""
    # GPT-2's byte alphabet: printable bytes stand for themselves, the rest lie from U+0100 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    alphabet = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    words = (f"{alphabet[97 + index % 26]}{index:x}" for index in range(VOCABULARY - 256))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*alphabet, *words])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges([f"{alphabet[97]} {alphabet[98]}"])
    writer.add_bos_token_id(VOCABULARY - 2)
    writer.add_eos_token_id(VOCABULARY - 1)
