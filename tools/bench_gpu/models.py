"""Models of real size with random weights that compute something, written in seconds.

Memory is where they should lie (a tmpfs): what is measured is the engine, not a disk.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q

from meshd.models.gguf_header import read_header
from tools.memory_table import sparse
from tools.memory_table.models import MODELS
from tools.memory_table.sparse import Shape

_TILE_BYTES = 64 << 20
_DEVIATION = 0.02
# ggml-common.h: bytes before a block's half-precision scale, by type; Q4_K has a second one, for
# minima. What one has to be, so that weights have a deviation of 1, and a mean of 0.
_SCALES = {
    Q.Q4_K: ((0, 1 / 258), (2, 7.5 / 258)),
    Q.Q6_K: ((208, 1 / 1362),),
    Q.Q8_0: ((0, 1 / 74),),
}


def known(name: str) -> Shape:
    """A published model's dimensions (tools/memory_table). :raises KeyError: there is none."""
    return next(shape for shape in MODELS if shape.name == name)


def write(shape: Shape, folder: Path, seed: int = 1) -> Path:
    """The same content for the same seed. Routers choose at random, another way in each layer.

    :raises OSError: the folder has no room for it.
    """
    path = sparse.write(shape, folder)
    header, dice = read_header(path), np.random.default_rng(seed)
    tiles: dict[Q, bytes] = {}
    with path.open("r+b") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        waited = []
        for tensor in header.tensors:
            place = header.data_offset + tensor.offset
            if tensor.type is Q.F32:
                os.pwrite(file.fileno(), _full_precision(tensor.name, tensor.shape, dice), place)
                continue
            kind = Q(tensor.type)
            if kind not in tiles:
                tiles[kind] = _tile(kind, dice)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            left = tensor.elements // block * block_bytes
            while left:
                piece = memoryview(tiles[kind])[: min(left, len(tiles[kind]))]
                waited.append(pool.submit(os.pwrite, file.fileno(), piece, place))
                place, left = place + len(piece), left - len(piece)
        for one in waited:
            one.result()
    return path


def _full_precision(name: str, shape: tuple[int, ...], dice: np.random.Generator) -> bytes:
    if "ffn_gate_inp" in name:
        return dice.normal(0, _DEVIATION, shape).astype(np.float32).tobytes()
    return np.ones(shape, np.float32).tobytes()


def _tile(kind: Q, dice: np.random.Generator) -> bytes:
    _, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = np.frombuffer(dice.bytes(_TILE_BYTES // block_bytes * block_bytes), np.uint8)
    blocks = blocks.reshape(-1, block_bytes).copy()
    for place, scale in _SCALES[kind]:
        half = np.float16(scale * _DEVIATION)
        blocks[:, place : place + 2] = np.frombuffer(half.tobytes(), np.uint8)
    return blocks.tobytes()
