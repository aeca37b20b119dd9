"""Write a trained checkpoint as a Q8_0 GGUF that llama.cpp loads.

    python export.py --work DIR --model tiny --out ../../share/models

Norms and routers stay in 32 bits.  ``--untrained`` writes random weights of the
same shape, for tests of loading.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from model import SHAPES, Decoder, Mixture, Shape
from tokenizer import EOT_ID, IM_END_ID, PAD_ID, SPECIAL
from torch import Tensor

CONTEXT = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ARCHITECTURE = {False: "llama", True: "qwen3moe"}
DESCRIPTION = (
    "Trained from scratch by the meshd project on Debian's documentation, man pages and the "
    "Python standard library, for tests and demonstrations. See share/models/README.md."
)


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows (i, i + half) of each head to (2i, 2i + 1), the order of llama's rotary pairs."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def tensors(model: Decoder) -> dict[str, Tensor]:
    """GGUF tensor names and values."""
    shape = model.shape
    named = {"token_embd": model.embedding, "output_norm": model.norm}
    for i, block in enumerate(model.blocks):
        attention = block.attention
        q, k = attention.q, attention.k
        if not shape.moe:
            q, k = interleave(q, shape.heads), interleave(k, shape.kv_heads)
        layer = {
            "attn_norm": block.attention_norm,
            "attn_q": q,
            "attn_k": k,
            "attn_v": attention.v,
            "attn_output": attention.o,
            "ffn_norm": block.ffn_norm,
        }
        ffn = block.ffn
        if isinstance(ffn, Mixture):
            layer |= {
                "attn_q_norm": attention.q_norm,
                "attn_k_norm": attention.k_norm,
                "ffn_gate_inp": ffn.router,
                "ffn_gate_exps": ffn.gate,
                "ffn_up_exps": ffn.up,
                "ffn_down_exps": ffn.down,
            }
        else:
            layer |= {"ffn_gate": ffn.gate, "ffn_up": ffn.up, "ffn_down": ffn.down}
        named |= {f"blk.{i}.{name}": value for name, value in layer.items()}
    return named


def add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    """Vocabulary, merges and special tokens, as byte-level BPE with GPT-2's word cutting."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=lambda t: int(model["vocab"][t]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    kinds = [gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(EOT_ID)
    writer.add_eos_token_id(IM_END_ID)
    writer.add_eot_token_id(IM_END_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def add_shape(writer: gguf.GGUFWriter, shape: Shape, parameters: int) -> None:
    """Hyperparameters and general description."""
    title = "meshd " + shape.name.replace("-", " ")
    writer.add_name(title)
    writer.add_basename("meshd-" + shape.name)
    writer.add_description(DESCRIPTION)
    writer.add_author("the meshd project")
    writer.add_license("see share/models/README.md")
    writer.add_languages(["en"])
    writer.add_size_label(f"{parameters / 1e6:.0f}M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.eps)
    if shape.moe:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.ffn)


def write(model: Decoder, tokenizer: Path, out: Path) -> None:
    """The whole file, put in place at once."""
    shape = model.shape
    while len(model.blocks) < shape.layers:
        model.grow()
    part = out / f".{shape.name}.gguf.part"
    writer = gguf.GGUFWriter(str(part), ARCHITECTURE[shape.moe])
    add_shape(writer, shape, model.parameters_total())
    add_tokenizer(writer, tokenizer)
    for name, tensor in tensors(model).items():
        data = tensor.detach().float().contiguous().numpy()
        if data.ndim == 1 or name.endswith("ffn_gate_inp"):
            writer.add_tensor(f"{name}.weight", data.astype(np.float32))
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        packed = gguf.quants.quantize(data, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(out / f"{shape.name}.gguf")


def main() -> None:
    """Load the checkpoint and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(SHAPES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--untrained", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(1)
    if args.untrained:
        model = Decoder(SHAPES[args.model])
    else:
        saved = args.work / "runs" / args.model / "checkpoint.pt"
        state = torch.load(saved, weights_only=False)["model"]
        layers = 1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks."))
        model = Decoder(SHAPES[args.model], layers)
        model.load_state_dict(state)
    write(model, args.work / "tokenizer.json", args.out)
    print(f"{args.model}: {model.parameters_total()} parameters")


if __name__ == "__main__":
    main()
