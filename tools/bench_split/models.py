"""Models of random weights, made once into .cache/bench."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from meshd.node.speed_model import ModelShape, Tensor, offsets, write

FOLDER = Path(__file__).resolve().parents[2] / ".cache/bench/split"

MODELS = {
    "300 MB": ModelShape(layers=8, width=2048, feed_forward=8192, heads=16, kv_heads=4),
    "1 GB": ModelShape(layers=17, width=3072, feed_forward=8192, heads=24, kv_heads=6),
}
# ggml-common.h: bytes of a block, and where its half-precision scales lie.
_SCALES = {
    GGMLQuantizationType.Q4_K: (144, (0, 2)),
    GGMLQuantizationType.Q6_K: (210, (208,)),
}


def model(name: str) -> Path:
    """The file; some seconds when it is not there yet."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    shape = MODELS[name]
    path = FOLDER / f"{name.replace(' ', '').lower()}-{shape.layers}.gguf"
    if path.exists():
        return path
    new = path.with_suffix(".new")
    start = write(shape, new)
    dice = np.random.default_rng(1)
    with new.open("r+b") as file:
        for tensor, offset in offsets(shape, start):
            file.seek(offset)
            file.write(_weights(tensor, dice))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return path


def _weights(tensor: Tensor, dice: np.random.Generator) -> bytes:
    if tensor.kind is GGMLQuantizationType.F32:
        return np.ones(tensor.weights, np.float32).tobytes()
    block, scales = _SCALES[tensor.kind]
    data = dice.integers(0, 256, tensor.size_bytes, np.uint8).reshape(-1, block)
    for place in scales:
        data[:, place : place + 2] = np.frombuffer(np.float16(0.0005).tobytes(), np.uint8)
    return data.tobytes()
