"""The published dimensions of the models that the table covers."""

from __future__ import annotations

from gguf import GGMLQuantizationType as Q

from tools.memory_table.sparse import Shape

_SANDWICH = ("post_attention_norm", "ffn_norm", "post_ffw_norm")
_PRE = ("ffn_norm",)
_QKV = ("attn_q", "attn_k", "attn_v")


def _gpt_oss(name: str, layers: int, experts: int) -> Shape:
    return Shape(
        name, "gpt-oss", layers, 2880, 64, 8, 2880, 201088, 131072,
        head=64, post_norms=("post_attention_norm",), bias=(*_QKV, "attn_output"),
        experts=experts, experts_used=4, expert_ff=2880,
        quantisation=Q.Q8_0, quantisation_experts=Q.MXFP4,
        metadata={"attention.sliding_window": 128, "rope.dimension_count": 64},
    )  # fmt: skip


MODELS: tuple[Shape, ...] = (
    Shape("llama-3.3-70b", "llama", 80, 8192, 64, 8, 28672, 128256, 131072, post_norms=_PRE),
    Shape(
        "llama-3.2-3b", "llama", 28, 3072, 24, 8, 8192, 128256, 131072,
        head=128, tied=True, post_norms=_PRE,
    ),
    Shape(
        "mistral-small-24b", "llama", 40, 5120, 32, 8, 32768, 131072, 131072,
        head=128, post_norms=_PRE, metadata={"rope.dimension_count": 128},
    ),
    Shape(
        "mixtral-8x7b", "llama", 32, 4096, 32, 8, 14336, 32000, 32768,
        experts=8, experts_used=2, expert_ff=14336, post_norms=_PRE,
    ),
    Shape(
        "qwen2.5-7b", "qwen2", 28, 3584, 28, 4, 18944, 152064, 32768, bias=_QKV, post_norms=_PRE,
    ),
    Shape(
        "qwen3-8b", "qwen3", 36, 4096, 32, 8, 12288, 151936, 40960,
        head=128, qk_norm=True, post_norms=_PRE,
    ),
    Shape(
        "qwen3-32b-q8", "qwen3", 64, 5120, 64, 8, 25600, 151936, 40960,
        head=128, qk_norm=True, post_norms=_PRE, quantisation=Q.Q8_0,
    ),
    Shape(
        "qwen3-30b-a3b", "qwen3moe", 48, 2048, 32, 4, 6144, 151936, 40960,
        head=128, qk_norm=True, post_norms=_PRE, experts=128, experts_used=8, expert_ff=768,
    ),
    Shape(
        "qwen3-next-80b-a3b", "qwen3next", 48, 2048, 16, 2, 5120, 151936, 262144,
        head=256, qk_norm=True, post_norms=("post_attention_norm",),
        experts=512, experts_used=10, expert_ff=512, shared_ff=512,
        metadata={
            "expert_shared_feed_forward_length": 512, "rope.dimension_count": 64,
            "ssm.conv_kernel": 4, "ssm.inner_size": 4096, "ssm.state_size": 128,
            "ssm.time_step_rank": 32, "ssm.group_count": 16,
        },
    ),
    Shape(
        "glm-4.5-air", "glm4moe", 46, 4096, 96, 8, 10944, 151552, 131072,
        head=128, bias=_QKV, post_norms=("post_attention_norm",),
        experts=128, experts_used=8, expert_ff=1408, shared_experts=1, shared_ff=1408,
        dense_layers=1, next_layers=1, metadata={"rope.dimension_count": 64},
    ),
    Shape(
        "deepseek-v2-lite", "deepseek2", 27, 2048, 16, 1, 10944, 102400, 163840,
        post_norms=_PRE, experts=64, experts_used=6, expert_ff=1408,
        shared_experts=2, shared_ff=2816, dense_layers=1,
        metadata={
            "attention.kv_lora_rank": 512, "rope.dimension_count": 64,
            "attention.key_length": 576, "attention.value_length": 512,
            "attention.key_length_mla": 192, "attention.value_length_mla": 128,
            "expert_weights_scale": 1.0,
        },
    ),
    Shape(
        "deepseek-v3", "deepseek2", 61, 7168, 128, 1, 18432, 129280, 163840,
        post_norms=_PRE, experts=256, experts_used=8, expert_ff=2048,
        shared_experts=1, shared_ff=2048, dense_layers=3,
        metadata={
            "attention.kv_lora_rank": 512, "attention.q_lora_rank": 1536,
            "rope.dimension_count": 64,
            "attention.key_length": 576, "attention.value_length": 512,
            "attention.key_length_mla": 192, "attention.value_length_mla": 128,
            "expert_weights_scale": 2.5, "expert_gating_func": 2,
        },
    ),
    _gpt_oss("gpt-oss-20b", 24, 32),
    _gpt_oss("gpt-oss-120b", 36, 128),
    Shape(
        "gemma-2-9b", "gemma2", 42, 3584, 16, 8, 14336, 256000, 8192,
        head=256, tied=True, post_norms=_SANDWICH, metadata={"attention.sliding_window": 4096},
    ),
    Shape(
        "gemma-3-27b", "gemma3", 62, 5376, 32, 16, 21504, 262208, 131072,
        head=128, tied=True, qk_norm=True, post_norms=_SANDWICH,
        metadata={"attention.sliding_window": 1024},
    ),
    Shape(
        "phi-4", "phi3", 40, 5120, 40, 10, 17920, 100352, 16384,
        fused=True, post_norms=_PRE, metadata={"rope.dimension_count": 128},
    ),
    Shape(
        "llama-4-scout", "llama4", 48, 5120, 40, 8, 16384, 202048, 10485760,
        head=128, post_norms=_PRE, experts=16, experts_used=1, expert_ff=8192,
        shared_ff=8192, metadata={"interleave_moe_layer_step": 1},
    ),
    Shape(
        "command-r7b", "cohere2", 32, 4096, 32, 8, 14336, 256000, 8192,
        tied=True, metadata={"attention.sliding_window": 4096, "logit_scale": 0.25},
    ),
    Shape(
        "falcon-h1-7b", "falcon-h1", 44, 3072, 12, 2, 12288, 130048, 262144,
        head=128, post_norms=_PRE,
        metadata={
            "ssm.conv_kernel": 4, "ssm.inner_size": 3072, "ssm.state_size": 256,
            "ssm.time_step_rank": 24, "ssm.group_count": 1,
        },
    ),
)  # fmt: skip
