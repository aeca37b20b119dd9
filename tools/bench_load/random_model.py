"""Models of any size with random weights that compute something: for loads, not for answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from meshd.models.gguf_header import Tensor, read_header
from tools.memory_table import sparse
from tools.memory_table.sparse import Shape

Q8_0 = GGMLQuantizationType.Q8_0
_BLOCK = 32
_BLOCKS_AT_ONCE = 1 << 19
# Standard deviation of whole numbers from -127 to 127.
_SPREAD = 73.3


def shape(name: str, layers: int, width: int, ff: int) -> Shape:
    """A llama whose matrices are Q8_0, small vocabulary."""
    heads = width // 128
    return Shape(
        name, "llama", layers, width, heads, heads, ff, 2048, 4096,
        post_norms=("ffn_norm",), quantisation=Q8_0,
    )  # fmt: skip


def write(model: Shape, folder: Path, seed: int = 1) -> Path:
    """The same content for the same seed. :raises OSError: the disk is full."""
    path = sparse.write(model, folder)
    header, random = read_header(path), np.random.default_rng(seed)
    with path.open("r+b") as file:
        for tensor in header.tensors:
            file.seek(header.data_offset + tensor.offset)
            _fill(file, tensor, random)  # type: ignore[arg-type]
    return path


def _fill(file, tensor: Tensor, random: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    if tensor.type is not Q8_0:
        assert tensor.type is GGMLQuantizationType.F32, tensor
        file.write(np.ones(tensor.elements, np.float32).tobytes())
        return
    blocks = np.dtype([("scale", np.float16), ("weights", np.int8, _BLOCK)])
    scale = 1 / (_SPREAD * np.sqrt(tensor.shape[0]))
    left = tensor.elements // _BLOCK
    while left:
        count = min(left, _BLOCKS_AT_ONCE)
        some = np.empty(count, blocks)
        some["scale"] = scale
        # -128 is a legal byte too; nothing here minds.
        some["weights"] = np.frombuffer(random.bytes(count * _BLOCK), np.int8).reshape(count, -1)
        file.write(some.tobytes())
        left -= count
