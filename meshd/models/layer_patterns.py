"""Which layers slide, recur or share a cache: what each architecture fixes beside its metadata.

Source: ``load_arch_hparams`` of each model in llama.cpp's src/models/ and
``llama_hparams::set_swa_pattern``, ``n_embd_r``, ``n_embd_s`` and ``llama_model::create_memory``.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshd.models.metadata import Metadata


@dataclass(frozen=True, slots=True)
class _Window:
    """:ivar period: every period-th layer attends to all, unless the file has its own pattern.

    :ivar dense_first: that layer is the first of its period, not the last.
    :ivar fixed: the window where the engine ignores the metadata's (``default``: where absent).
    """

    period: int | None
    dense_first: bool = False
    default: int = 0
    fixed: int = 0


# phi3 is not here on purpose: the engine does not use its window.
_WINDOWS = {
    "afmoe": _Window(4),
    "cohere2": _Window(4),
    "cohere2moe": _Window(4, dense_first=True),
    "exaone4": _Window(4, default=4096),
    "exaone-moe": _Window(4, default=128),
    "gemma-embedding": _Window(6),
    "gemma2": _Window(2, default=4096),
    "gemma3": _Window(6),
    "gemma3n": _Window(5),
    "gemma4": _Window(None),
    "gpt-oss": _Window(2),
    "granite-swa": _Window(None),
    "laguna": _Window(4, dense_first=True),
    "llama4": _Window(4, fixed=8192),
    "maple": _Window(None),
    "mellum": _Window(4),
    "mimo2": _Window(None),
    "modern-bert": _Window(3, dense_first=True),
    "muse-glimmer": _Window(4),
    "olmo2": _Window(4),
    "plamo3": _Window(8),
    "smallthinker": _Window(4, dense_first=True, fixed=4096),
    "spark2-5": _Window(None),
    "step35": _Window(None),
}

_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
_BOTH_EVERYWHERE = frozenset({"falcon-h1"})
_BY_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
_BY_NO_KV_HEADS = frozenset(
    {
        "bailingmoe3",
        "glm5-next",
        "granitehybrid",
        "jamba",
        "kimi-k3",
        "kimi-linear",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "plamo2",
    }
)
# No cache at all: encoders and diffusion models (the first case of create_memory).
NO_CACHE = frozenset(
    {
        "bert",
        "dream",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "rnd1",
        "t5encoder",
        "wavtokenizer-dec",
    }
)

# Of those, what ends in embeddings: tied or not, there is no output layer.
ENCODERS = NO_CACHE - {"dream", "llada", "llada-moe", "rnd1"}


def sliding(metadata: Metadata, layers: int) -> tuple[int, tuple[bool, ...]]:
    """Return the window in tokens (0 for none) and which layers slide."""
    architecture = metadata.architecture
    rule = _WINDOWS.get(architecture)
    none = (0, (False,) * layers)
    if rule is None or (architecture == "exaone4" and layers != 64):
        return none
    declared = metadata.number("attention.sliding_window", rule.fixed or rule.default)
    if declared == 0:
        return none
    window = rule.fixed or declared
    name = "attention.sliding_window_pattern"
    if metadata.array(name) is not None:
        return window, tuple(map(bool, metadata.per_layer(name, layers)))
    if rule.period is None and metadata.key(name) not in metadata.values:
        raise metadata.fail(metadata.key(name), "is missing")
    period = metadata.number(name, rule.period)
    dense = 0 if rule.dense_first else period - 1
    return window, tuple(period == 0 or layer % period != dense for layer in range(layers))


def recurrent(
    metadata: Metadata, kv_heads: tuple[int, ...], feed_forward: tuple[int, ...]
) -> tuple[bool, ...]:
    """Which layers carry a state of fixed size per sequence."""
    architecture, layers = metadata.architecture, len(kv_heads)
    if architecture in _RECURRENT or architecture in _BOTH_EVERYWHERE:
        return (True,) * layers
    if architecture in _BY_INTERVAL:
        name = "attention.recurrent_layers"
        if metadata.array(name) is not None:
            return tuple(map(bool, metadata.per_layer(name, layers)))
        every = metadata.number("full_attention_interval", _BY_INTERVAL[architecture])
        return tuple(every == 0 or (layer + 1) % every != 0 for layer in range(layers))
    if architecture in _BY_NO_KV_HEADS:
        idle = architecture.startswith("nemotron_h")  # there a layer may be an FFN only
        return tuple(
            heads == 0 and not (idle and width)
            for heads, width in zip(kv_heads, feed_forward, strict=True)
        )
    return (False,) * layers


def attends(metadata: Metadata, layer: int, recurs: bool, feed_forward: int) -> bool:
    """Whether the layer has a KV cache of its own."""
    architecture = metadata.architecture
    if architecture in NO_CACHE or architecture in _RECURRENT:
        return False
    if architecture == "gemma3n":
        return layer < 20
    if architecture == "gemma4":
        shared = metadata.number("attention.shared_kv_layers", 0)
        return layer < metadata.number("block_count") - shared
    if architecture.startswith("nemotron_h"):
        return not recurs and feed_forward == 0
    return architecture in _BOTH_EVERYWHERE or not recurs


def state_elements(metadata: Metadata, embedding: int, heads: int, key_length: int) -> int:
    """F32 elements of state (rolling and recurrent) of one recurrent layer per sequence."""
    number = metadata.number
    wkv = number("wkv.head_size", 0)
    if wkv:
        return embedding * (number("token_shift_count", 2) + wkv)
    shortconv = number("shortconv.l_cache", 0)
    if shortconv:
        return embedding * (shortconv - 1)
    convolved = max(number("ssm.conv_kernel", 0) - 1, 0)
    kda = number("kda.head_dim", 0)
    if kda:
        return 3 * (convolved or 3) * heads * kda + kda * kda * heads
    if metadata.architecture == "minimax-01":
        return key_length * key_length * heads
    inner, state = number("ssm.inner_size", 0), number("ssm.state_size", 0)
    return convolved * (inner + 2 * number("ssm.group_count", 0) * state) + state * inner
