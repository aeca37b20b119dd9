"""Which tensors of a model an rpc-server can find in its cache, and which of them a node needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from meshd.models.gguf_header import Header

# HASH_THRESHOLD in ggml-rpc.cpp: only of larger ones does llama-server ask whether they are there.
THRESHOLD_BYTES = 10 << 20
_BLOCK = re.compile(r"blk\.(\d{1,4})\.")


@dataclass(frozen=True, slots=True)
class SeedTensor:
    """:ivar file: index of the model's part that holds it. :ivar offset: in that file."""

    name: str
    layer: int
    file: int
    offset: int
    size_bytes: int


def seedable(headers: Sequence[Header]) -> tuple[SeedTensor, ...]:
    """The tensors of a model's blocks that are large enough, in the order of layers.

    Embeddings and the output layer have no block: in our splits they stay on the host.
    """
    found = [
        SeedTensor(
            tensor.name, int(block[1]), file, header.data_offset + tensor.offset, tensor.size_bytes
        )
        for file, header in enumerate(headers)
        for tensor in header.tensors
        if tensor.size_bytes > THRESHOLD_BYTES and (block := _BLOCK.match(tensor.name))
    ]
    return tuple(sorted(found, key=lambda tensor: (tensor.layer, tensor.file, tensor.offset)))


def block_bytes(headers: Sequence[Header], first_layer: int, layers: int) -> int:
    """Of all tensors in these layers, those included that are too small for a cache."""
    return sum(
        tensor.size_bytes
        for header in headers
        for tensor in header.tensors
        if (block := _BLOCK.match(tensor.name))
        and first_layer <= int(block[1]) < first_layer + layers
    )


def of_layers(
    tensors: Iterable[SeedTensor], first_layer: int, layers: int
) -> tuple[SeedTensor, ...]:
    return tuple(tensor for tensor in tensors if first_layer <= tensor.layer < first_layer + layers)
