"""What a GGUF header says about a model: frozen facts, no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One transformer block.

    :ivar weight_bytes: all of its tensors; ``expert_bytes`` the routed experts' share of them.
    :ivar kv_heads: key/value heads of this layer; 0 for a layer without KV cache (recurrent).
    :ivar sliding: the layer attends to a sliding window only.
    :ivar recurrent_bytes: state per sequence of a recurrent layer (Mamba, linear attention), or 0.
    :ivar key_elements: of K cached per token, over all KV heads (``value_elements`` of V); 0 where
        nothing is cached: recurrent layers, layers that reuse another's cache, V of MLA models.
    :ivar prediction: a multi-token prediction block, which ordinary decoding does not run.
    :ivar largest_tensor_bytes: what a GPU copies at once when it works for the host on this layer;
        ``largest_dense_bytes`` of those that are not by expert.
    :ivar router_bytes: what chooses among the experts and has a row or a value for each.
    :ivar heads: query heads; ``feed_forward`` the widest hidden row of its dense FFN.
    """

    weight_bytes: int
    expert_bytes: int
    kv_heads: int
    sliding: bool = False
    recurrent_bytes: int = 0
    key_elements: int = 0
    value_elements: int = 0
    prediction: bool = False
    heads: int = 0
    feed_forward: int = 0
    largest_tensor_bytes: int = 0
    largest_dense_bytes: int = 0
    router_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """One model, whatever number of files it lies in.

    :ivar files: every part, in order, absolute.
    :ivar file_bytes: size on disk of all parts.
    :ivar key_length: elements per head and token of K (``value_length`` of V); for MLA models the
        compressed KV row is what is cached: then kv_heads is 1 and the lengths are the row's.
    :ivar embedding_bytes: token embedding (stays on the host); ``output_bytes`` the output layer,
        which equals the embedding's size and is not stored twice when weights are tied, and is 0
        for encoders, which have none.
    :ivar vocabulary_sha256: identity of the tokenizer: two models can be draft and target only if
        it is equal.
    :ivar quantisation: the file type as people write it, e.g. ``Q8_0``, ``Q4_K_M``.
    :ivar other_bytes: final norms, classifiers and the like, which lie with the output layer.
    :ivar expert_feed_forward: hidden row of one routed expert.
    :ivar mla_key_length: of one decompressed head where K caches compressed rows and V nothing
        (DeepSeek's latent attention), else 0.
    :ivar tools: its chat template has a place for tools.
    :ivar expert_parameters: of `parameters`, those that are by expert, the router's among them.
    :ivar expert_groups: of which a router first chooses some, 0 where it does not;
        ``expert_groups_used`` how many it chooses.
    :ivar undividable: why no shard can be made of its experts, "" where one can or there are none.
    :ivar pooling: set for embedding models, None for models that generate.
    """

    files: tuple[str, ...]
    file_bytes: int
    architecture: str
    name: str
    quantisation: str
    parameters: int
    layers: tuple[LayerFacts, ...]
    embedding_length: int
    heads: int
    key_length: int
    value_length: int
    context_train: int
    vocabulary_size: int
    vocabulary_sha256: str
    embedding_bytes: int
    output_bytes: int
    tied_embeddings: bool
    other_bytes: int
    sliding_window: int = 0
    experts: int = 0
    experts_used: int = 0
    chat_template: bool = False
    pooling: str | None = None
    mmproj: bool = False
    expert_feed_forward: int = 0
    mla_key_length: int = 0
    tools: bool = False
    expert_groups: int = 0
    undividable: str = ""
    expert_parameters: int = 0
    expert_groups_used: int = 0

    @property
    def moe(self) -> bool:
        return self.experts > 0
