"""Bytes of the KV cache and of recurrent state: pure.

Source: src/llama-context.cpp (context sizes), llama-kv-cache.cpp, llama-kv-cache-iswa.cpp and
llama-memory-recurrent.cpp of llama.cpp b11669.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshd.models.facts import GgufFacts, LayerFacts

CELL_PADDING = 256

# Bytes of 32 elements, a block of the block types (ggml-common.h).
CELL_TYPES = {
    "f32": 128,
    "f16": 64,
    "bf16": 64,
    "q8_0": 34,
    "q5_1": 24,
    "q5_0": 22,
    "q4_1": 20,
    "q4_0": 18,
    "iq4_nl": 18,
}


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """What one engine is asked to hold.

    :ivar context: tokens in all, over all slots (``--ctx-size``).
    :ivar slots: sequences at once (``--parallel``).
    :ivar unified: slots share one pool of cells (``--kv-unified``), else each has its part.
    :ivar key_type: of the cells, a key of `CELL_TYPES` (``--cache-type-k``; ``value_type`` of V).
    :ivar swa_full: sliding layers keep the whole context too (``--swa-full``).
    :ivar op_offload: GPUs work on host weights for large batches (``--op-offload``, the default),
        and hold a copy of them meanwhile. RPC devices never do.
    :ivar outputs: tokens of one batch whose logits are wanted. None: one a slot, as llama-server
        asks; llama-fit-params reckons with all of the batch, which can be 1 GiB more.
    """

    context: int
    slots: int = 1
    unified: bool = False
    key_type: str = "f16"
    value_type: str = "f16"
    flash_attention: bool = True
    batch: int = 2048
    ubatch: int = 512
    swa_full: bool = False
    outputs: int | None = None
    op_offload: bool = True

    def __post_init__(self) -> None:
        numbers = (self.context, self.slots, self.batch, self.ubatch)
        if min(numbers) < 1 or (self.outputs is not None and self.outputs < 1):
            raise ValueError(f"context, slots, batch, ubatch and outputs are positive: {self}")
        for kind in (self.key_type, self.value_type):
            if kind not in CELL_TYPES:
                raise ValueError(f"cell type {kind} is none of {', '.join(CELL_TYPES)}")

    @property
    def streams(self) -> int:
        """Separate pools of cells."""
        return 1 if self.unified else self.slots

    @property
    def tokens(self) -> int:
        """Tokens in one graph: the micro-batch that remains of batch and context."""
        return min(self.ubatch, self.batch, _padded(self.context))

    @property
    def logits_rows(self) -> int:
        return min(self.tokens, self.slots if self.outputs is None else self.outputs)


def cells(facts: GgufFacts, settings: ContextSettings, *, sliding: bool) -> int:
    """Cells of one stream: the context padded to 256, or the windows and one micro-batch."""
    full = _padded(_padded(settings.context) // settings.streams)
    if not sliding or settings.swa_full:
        return full
    windows = facts.sliding_window * (settings.slots if settings.unified else 1)
    return _padded(min(full, windows + settings.tokens))


def layer_bytes(
    facts: GgufFacts, layer: LayerFacts, settings: ContextSettings, *, value_widest: int
) -> int:
    """Cache and state of one layer over all slots.

    :param value_widest: the most V elements of any layer: without flash attention V lies
        transposed and every layer's rows are as wide as the widest.
    """
    state = layer.recurrent_bytes * settings.slots
    if layer.key_elements == 0:
        return state
    value = layer.value_elements
    if value and not settings.flash_attention:
        value = value_widest
    row = layer.key_elements * CELL_TYPES[settings.key_type]
    row += value * CELL_TYPES[settings.value_type]
    return state + row * cells(facts, settings, sliding=layer.sliding) * settings.streams // 32


def _padded(count: int) -> int:
    return -(-count // CELL_PADDING) * CELL_PADDING
