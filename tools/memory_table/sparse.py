"""GGUF files of real size that take no disk: a true header, then a hole.

Tensor names and shapes per architecture are what llama.cpp's ``load_arch_tensors`` asks for; layer
counts and widths are those of the published models' configuration files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType

Q = GGMLQuantizationType
Tensor = tuple[str, tuple[int, ...], Q]


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's published dimensions. Widths are elements, `ff` the hidden row of the FFN."""

    name: str
    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ff: int
    vocabulary: int
    context: int
    head: int = 0
    tied: bool = False
    qk_norm: bool = False
    post_norms: tuple[str, ...] = ()
    bias: tuple[str, ...] = ()
    fused: bool = False
    experts: int = 0
    experts_used: int = 0
    expert_ff: int = 0
    shared_experts: int = 0
    shared_ff: int = 0
    dense_layers: int = 0
    next_layers: int = 0
    quantisation: Q = Q.Q4_K
    quantisation_experts: Q | None = None
    metadata: dict[str, int | float | bool | list[int]] = field(default_factory=dict)

    @property
    def head_length(self) -> int:
        return self.head or self.width // self.heads


def tensors(shape: Shape) -> Iterator[Tensor]:
    """Every tensor of the file, in file order; a Q4_K file has Q6_K where Q4_K_M has it."""
    weight = shape.quantisation
    better = Q.Q6_K if weight is Q.Q4_K else weight
    yield "token_embd.weight", (shape.width, shape.vocabulary), weight
    yield "output_norm.weight", (shape.width,), Q.F32
    if not shape.tied:
        yield "output.weight", (shape.width, shape.vocabulary), better
    for layer in range(shape.layers + shape.next_layers):
        for name, size, kind in _block(shape, layer):
            mixed = better if name in ("attn_v.weight", "ffn_down.weight") and layer % 2 else kind
            yield f"blk.{layer}.{name}", size, _fitting(mixed, size[0])


def _fitting(kind: Q, row: int) -> Q:
    """What llama-quantize takes for rows that do not divide into superblocks."""
    fallback = {Q.Q4_K: Q.Q5_0, Q.Q6_K: Q.Q8_0}
    return fallback[kind] if kind in fallback and row % 256 else kind


def _block(shape: Shape, layer: int) -> Iterator[Tensor]:
    yield "attn_norm.weight", (shape.width,), Q.F32
    if shape.architecture == "deepseek2":
        yield from _latent_attention(shape)
    elif shape.architecture == "qwen3next" and (layer + 1) % 4:
        yield from _delta_net(shape)
    else:
        yield from _attention(shape)
    if shape.architecture == "falcon-h1":
        yield from _mamba2(shape)
    for name in shape.post_norms:
        # upstream's falcon-h1 asks for this one without the suffix
        suffix = "" if shape.architecture == "falcon-h1" else ".weight"
        yield f"{name}{suffix}", (shape.width,), Q.F32
    if shape.experts and layer >= shape.dense_layers:
        yield from _experts(shape)
    else:
        yield from _feed_forward(shape, shape.ff, "")
    if layer >= shape.layers:
        yield "nextn.eh_proj.weight", (2 * shape.width, shape.width), shape.quantisation
        yield "nextn.enorm.weight", (shape.width,), Q.F32
        yield "nextn.hnorm.weight", (shape.width,), Q.F32


def _attention(shape: Shape) -> Iterator[Tensor]:
    head, kind = shape.head_length, shape.quantisation
    query, kv = shape.heads * head, shape.kv_heads * head
    gated = 2 if shape.architecture == "qwen3next" else 1
    if shape.fused:
        yield "attn_qkv.weight", (shape.width, query + 2 * kv), kind
    else:
        yield "attn_q.weight", (shape.width, query * gated), kind
        yield "attn_k.weight", (shape.width, kv), kind
        yield "attn_v.weight", (shape.width, kv), kind
    yield "attn_output.weight", (query, shape.width), kind
    widths = {"attn_q": query, "attn_k": kv, "attn_v": kv, "attn_output": shape.width}
    for name in shape.bias:
        yield f"{name}.bias", (widths[name],), Q.F32
    if shape.qk_norm:
        yield "attn_q_norm.weight", (head,), Q.F32
        yield "attn_k_norm.weight", (head,), Q.F32
    if shape.architecture == "gpt-oss":
        yield "attn_sinks.weight", (shape.heads,), Q.F32


def _latent_attention(shape: Shape) -> Iterator[Tensor]:
    kind, number = shape.quantisation, _number(shape)
    latent, rope = number("attention.kv_lora_rank"), number("rope.dimension_count")
    key, value = number("attention.key_length_mla"), number("attention.value_length_mla")
    query = number("attention.q_lora_rank")
    if query:
        yield "attn_q_a_norm.weight", (query,), Q.F32
        yield "attn_q_a.weight", (shape.width, query), kind
        yield "attn_q_b.weight", (query, shape.heads * key), kind
    else:
        yield "attn_q.weight", (shape.width, shape.heads * key), kind
    yield "attn_kv_a_norm.weight", (latent,), Q.F32
    yield "attn_kv_a_mqa.weight", (shape.width, latent + rope), kind
    yield "attn_k_b.weight", (key - rope, latent, shape.heads), Q.Q8_0
    yield "attn_v_b.weight", (latent, value, shape.heads), Q.Q8_0
    yield "attn_output.weight", (shape.heads * value, shape.width), kind


def _delta_net(shape: Shape) -> Iterator[Tensor]:
    kind, number = shape.quantisation, _number(shape)
    state, inner, rank = (
        number(f"ssm.{name}") for name in ("state_size", "inner_size", "time_step_rank")
    )
    convolved = 2 * state * number("ssm.group_count") + inner
    yield "attn_qkv.weight", (shape.width, convolved), kind
    yield "attn_gate.weight", (shape.width, inner), kind
    yield "ssm_conv1d.weight", (number("ssm.conv_kernel"), convolved), Q.F32
    yield "ssm_dt.bias", (rank,), Q.F32
    yield "ssm_a", (rank,), Q.F32
    yield "ssm_ba.weight", (shape.width, 2 * rank), kind
    yield "ssm_norm.weight", (state,), Q.F32
    yield "ssm_out.weight", (inner, shape.width), kind


def _mamba2(shape: Shape) -> Iterator[Tensor]:
    kind, number = shape.quantisation, _number(shape)
    inner, rank, groups = (
        number(f"ssm.{name}") for name in ("inner_size", "time_step_rank", "group_count")
    )
    convolved = inner + 2 * groups * number("ssm.state_size")
    yield "ssm_in.weight", (shape.width, inner + convolved + rank), kind
    yield "ssm_conv1d.weight", (number("ssm.conv_kernel"), convolved), Q.F32
    yield "ssm_conv1d.bias", (convolved,), Q.F32
    yield "ssm_dt.bias", (rank,), Q.F32
    yield "ssm_a", (1, rank), Q.F32
    yield "ssm_d", (1, rank), Q.F32
    yield "ssm_norm.weight", (inner // groups, groups), Q.F32
    yield "ssm_out.weight", (inner, shape.width), kind


def _feed_forward(shape: Shape, hidden: int, suffix: str) -> Iterator[Tensor]:
    kind = shape.quantisation
    if shape.fused:
        yield f"ffn_up{suffix}.weight", (shape.width, 2 * hidden), kind
    else:
        yield f"ffn_gate{suffix}.weight", (shape.width, hidden), kind
        yield f"ffn_up{suffix}.weight", (shape.width, hidden), kind
    yield f"ffn_down{suffix}.weight", (hidden, shape.width), kind


def _experts(shape: Shape) -> Iterator[Tensor]:
    kind = shape.quantisation_experts or shape.quantisation
    count, hidden = shape.experts, shape.expert_ff
    yield "ffn_gate_inp.weight", (shape.width, count), Q.F32
    for name in ("ffn_gate_exps", "ffn_up_exps"):
        yield f"{name}.weight", (shape.width, hidden, count), kind
    yield "ffn_down_exps.weight", (hidden, shape.width, count), kind
    if shape.architecture == "gpt-oss":
        yield "ffn_gate_inp.bias", (count,), Q.F32
        for name, size in (("gate", hidden), ("up", hidden), ("down", shape.width)):
            yield f"ffn_{name}_exps.bias", (size, count), Q.F32
    if shape.architecture == "glm4moe" or shape.metadata.get("expert_gating_func") == 2:
        yield "exp_probs_b.bias", (count,), Q.F32
    if shape.architecture == "qwen3next":
        yield "ffn_gate_inp_shexp.weight", (shape.width,), Q.F32
    if shape.shared_ff:
        yield from _feed_forward(shape, shape.shared_ff, "_shexp")


def _number(shape: Shape):  # type: ignore[no-untyped-def]
    return lambda key: int(shape.metadata.get(key, 0))  # type: ignore[arg-type]


def size_bytes(tensor: Tensor) -> int:
    _, shape, kind = tensor
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


def write(shape: Shape, folder: Path) -> Path:
    """Write the sparse file. :raises OSError: the file system takes no file of that size."""
    path = folder / f"{shape.name}.gguf"
    writer = GGUFWriter(path, shape.architecture)
    writer.add_name(shape.name)
    q4 = shape.quantisation is Q.Q4_K
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M if q4 else LlamaFileType.MOSTLY_Q8_0)
    _add_dimensions(writer, shape)
    _add_tokenizer(writer, shape.vocabulary)
    for tensor in tensors(shape):
        name, size, kind = tensor
        writer.add_tensor_info(
            name, size[::-1], np.dtype(np.float16), size_bytes(tensor), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    alignment = 32
    end = -(-path.stat().st_size // alignment) * alignment
    for tensor in tensors(shape):
        end += -(-size_bytes(tensor) // alignment) * alignment
    with path.open("r+b") as file:
        file.truncate(end)
    return path


def _add_dimensions(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.layers + shape.next_layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_feed_forward_length(shape.ff)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_layer_norm_eps(1e-6)
    numbers = {
        "expert_count": shape.experts,
        "expert_used_count": shape.experts_used,
        "expert_feed_forward_length": shape.expert_ff,
        "expert_shared_count": shape.shared_experts,
        "leading_dense_block_count": shape.dense_layers,
        "nextn_predict_layers": shape.next_layers,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
    }
    values = {key: value for key, value in numbers.items() if value} | shape.metadata
    for key, value in values.items():
        full = f"{shape.architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        elif isinstance(value, list):
            writer.add_array(full, value)
        else:
            writer.add_uint32(full, value)


def _add_tokenizer(writer: GGUFWriter, size: int) -> None:
    """A byte-level BPE of the right size whose merges say nothing."""
    # GPT-2's byte alphabet: printable bytes stand for themselves, the rest lie from U+0100 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    alphabet = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    words = (f"{alphabet[i % 256]}{i:x}" for i in range(size - 256))
    tokens = [*alphabet, *words]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * size)
    writer.add_token_merges([f"{alphabet[97]} {alphabet[98]}"])
    writer.add_bos_token_id(size - 2)
    writer.add_eos_token_id(size - 1)
