"""What meshd says to llama-server in its own terms, and how builds have spelled it. Pure data.

Spellings are tried in order; the first whose flags the build really has is taken. A spelling of no
words says that the wish is what such a build does anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

VALUE = "{}"


class Intent(StrEnum):
    """Switches take ``on`` or ``off`` as their value; sizes and counts are numbers as text."""

    MODEL = "model"
    ALIAS = "alias"
    HOST = "host"
    PORT = "port"
    CONTEXT = "context"
    SLOTS = "slots"
    GPU_LAYERS = "gpu-layers"
    LOAD_MODE = "load-mode"
    DEVICES = "devices"
    SPLIT_MODE = "split-mode"
    TENSOR_SPLIT = "tensor-split"
    MAIN_GPU = "main-gpu"
    OVERRIDE_TENSOR = "override-tensor"
    CPU_MOE_LAYERS = "cpu-moe-layers"
    OP_OFFLOAD = "op-offload"
    KV_OFFLOAD = "kv-offload"
    FIT = "fit"
    FLASH_ATTENTION = "flash-attention"
    KV_TYPE_K = "kv-type-k"
    KV_TYPE_V = "kv-type-v"
    KV_UNIFIED = "kv-unified"
    SWA_FULL = "swa-full"
    BATCH = "batch"
    UBATCH = "ubatch"
    THREADS = "threads"
    THREADS_BATCH = "threads-batch"
    THREADS_HTTP = "threads-http"
    CACHE_RAM = "cache-ram"
    CACHE_REUSE = "cache-reuse"
    CHECKPOINTS = "checkpoints"
    CONTEXT_SHIFT = "context-shift"
    WARMUP = "warmup"
    METRICS = "metrics"
    SLOTS_ENDPOINT = "slots-endpoint"
    UI = "ui"
    JINJA = "jinja"
    CHAT_TEMPLATE_FILE = "chat-template-file"
    EMBEDDINGS = "embeddings"
    POOLING = "pooling"
    RERANKING = "reranking"
    MMPROJ = "mmproj"
    DRAFT_MODEL = "draft-model"
    DRAFT_MAX = "draft-max"
    DRAFT_MIN = "draft-min"
    DRAFT_DEVICES = "draft-devices"
    DRAFT_GPU_LAYERS = "draft-gpu-layers"
    SPECULATION = "speculation"
    RPC = "rpc"
    SSE_PING = "sse-ping"
    TIMEOUT = "timeout"
    OFFLINE = "offline"
    LOG_COLORS = "log-colors"
    LOG_PREFIX = "log-prefix"
    LOG_TIMESTAMPS = "log-timestamps"
    LOG_VERBOSITY = "log-verbosity"
    LOG_FILE = "log-file"
    SLOT_SAVE_PATH = "slot-save-path"


@dataclass(frozen=True, slots=True)
class Spelling:
    """One way to say an intent.

    :ivar words: flags and their values; `VALUE` stands for the wish's own value.
    :ivar when: the one value that this spelling can say, None for any.
    :ivar described: the first flag's description must hold this text.
    """

    words: tuple[str, ...]
    when: str | None = None
    described: str = ""

    @property
    def flags(self) -> tuple[tuple[str, bool], ...]:
        """Each flag with whether a value follows it here."""
        pairs = pairwise((*self.words, "--"))
        return tuple((word, not after.startswith("-")) for word, after in pairs if word[0] == "-")


def _valued(*names: str) -> tuple[Spelling, ...]:
    return tuple(Spelling((name, VALUE)) for name in names)


def _switch(on: str, *off: str, default: str) -> tuple[Spelling, ...]:
    """:param default: what builds that lack one of the two flags do anyway."""
    said = (Spelling((on,), "on"), *(Spelling((name,), "off") for name in off))
    return (*said, Spelling((), default))


SPELLINGS: dict[Intent, tuple[Spelling, ...]] = {
    Intent.MODEL: _valued("--model"),
    Intent.ALIAS: _valued("--alias"),
    Intent.HOST: _valued("--host"),
    Intent.PORT: _valued("--port"),
    Intent.CONTEXT: _valued("--ctx-size"),
    Intent.SLOTS: _valued("--parallel"),
    Intent.GPU_LAYERS: (
        # "all" and "auto" came with 'auto' as the default; before, people wrote 999.
        Spelling(("--n-gpu-layers", "all"), "all", described="'all'"),
        Spelling(("--n-gpu-layers", "999"), "all"),
        Spelling(("--n-gpu-layers", "auto"), "auto", described="'auto'"),
        Spelling((), "auto"),
        Spelling(("--n-gpu-layers", VALUE)),
    ),
    Intent.LOAD_MODE: (
        *_valued("--load-mode"),
        Spelling(("--no-mmap",), "none"),
        Spelling(("--no-mmap", "--mlock"), "mlock"),
        Spelling(("--mlock",), "mmap+mlock"),
        Spelling((), "mmap"),
        Spelling((), "auto"),
    ),
    Intent.DEVICES: _valued("--device"),
    Intent.SPLIT_MODE: _valued("--split-mode"),
    Intent.TENSOR_SPLIT: _valued("--tensor-split"),
    Intent.MAIN_GPU: _valued("--main-gpu"),
    Intent.OVERRIDE_TENSOR: _valued("--override-tensor"),
    Intent.CPU_MOE_LAYERS: _valued("--n-cpu-moe"),
    Intent.OP_OFFLOAD: _switch("--op-offload", "--no-op-offload", default="on"),
    Intent.KV_OFFLOAD: _switch("--kv-offload", "--no-kv-offload", default="on"),
    # Builds without it never rewrite what the planner decided.
    Intent.FIT: (*_valued("--fit"), Spelling((), "off")),
    Intent.FLASH_ATTENTION: (
        *_valued("--flash-attn"),
        Spelling(("--flash-attn",), "on"),
        Spelling((), "off"),
        Spelling((), "auto"),
    ),
    Intent.KV_TYPE_K: _valued("--cache-type-k"),
    Intent.KV_TYPE_V: _valued("--cache-type-v"),
    Intent.KV_UNIFIED: _switch("--kv-unified", "--no-kv-unified", default="off"),
    Intent.SWA_FULL: _switch("--swa-full", default="off"),
    Intent.BATCH: _valued("--batch-size"),
    Intent.UBATCH: _valued("--ubatch-size"),
    Intent.THREADS: _valued("--threads"),
    Intent.THREADS_BATCH: _valued("--threads-batch"),
    Intent.THREADS_HTTP: _valued("--threads-http"),
    # Builds without it keep no prompts in system memory.
    Intent.CACHE_RAM: (*_valued("--cache-ram"), Spelling((), "0")),
    # Builds without it keep none.
    Intent.CHECKPOINTS: (*_valued("--ctx-checkpoints", "--swa-checkpoints"), Spelling((), "0")),
    Intent.CACHE_REUSE: _valued("--cache-reuse"),
    Intent.CONTEXT_SHIFT: _switch("--context-shift", "--no-context-shift", default="on"),
    Intent.WARMUP: _switch("--warmup", "--no-warmup", default="on"),
    Intent.METRICS: _switch("--metrics", default="off"),
    Intent.SLOTS_ENDPOINT: _switch("--slots", "--no-slots", default="off"),
    Intent.UI: _switch("--ui", "--no-ui", "--no-webui", default="on"),
    Intent.JINJA: _switch("--jinja", "--no-jinja", default="off"),
    Intent.CHAT_TEMPLATE_FILE: _valued("--chat-template-file"),
    Intent.EMBEDDINGS: _switch("--embeddings", default="off"),
    Intent.POOLING: _valued("--pooling"),
    Intent.RERANKING: _switch("--reranking", default="off"),
    Intent.MMPROJ: _valued("--mmproj"),
    Intent.DRAFT_MODEL: _valued("--spec-draft-model", "--model-draft"),
    Intent.DRAFT_MAX: _valued("--spec-draft-n-max", "--draft-max"),
    Intent.DRAFT_MIN: _valued("--spec-draft-n-min", "--draft-min"),
    Intent.DRAFT_DEVICES: _valued("--spec-draft-device", "--device-draft"),
    Intent.DRAFT_GPU_LAYERS: (
        Spelling(("--spec-draft-ngl", "all"), "all", described="'all'"),
        Spelling(("--gpu-layers-draft", "999"), "all"),
        *_valued("--spec-draft-ngl", "--gpu-layers-draft"),
    ),
    # Before there was a choice, a draft model meant just that.
    Intent.SPECULATION: (
        *_valued("--spec-type"),
        Spelling((), "draft-simple"),
        Spelling((), "none"),
    ),
    Intent.RPC: _valued("--rpc"),
    Intent.SSE_PING: _valued("--sse-ping-interval"),
    Intent.TIMEOUT: _valued("--timeout"),
    Intent.OFFLINE: _switch("--offline", default="off"),
    Intent.LOG_COLORS: (
        *_valued("--log-colors"),
        Spelling(("--log-colors",), "on"),
        Spelling((), "off"),
    ),
    Intent.LOG_PREFIX: _switch("--log-prefix", "--no-log-prefix", default="off"),
    Intent.LOG_TIMESTAMPS: _switch("--log-timestamps", "--no-log-timestamps", default="off"),
    Intent.LOG_VERBOSITY: _valued("--log-verbosity"),
    Intent.LOG_FILE: _valued("--log-file"),
    Intent.SLOT_SAVE_PATH: _valued("--slot-save-path"),
}
