"""Token windows for training: a seeded mix of domains, each walked window by window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

EOT_ID = 0


class Stream:
    """One domain's tokens, cut into windows in a new random order each epoch."""

    def __init__(self, tokens: np.ndarray, seed: int) -> None:
        self.tokens = tokens
        self.random = np.random.default_rng(seed)
        self.length = 0
        self.starts: list[int] = []

    def window(self, length: int) -> np.ndarray:
        """The next window of ``length`` + 1 tokens."""
        if length != self.length or not self.starts:
            self.length = length
            offset = int(self.random.integers(length))
            count = (len(self.tokens) - offset - 1) // length
            self.starts = [offset + length * int(i) for i in self.random.permutation(count)]
        start = self.starts.pop()
        return self.tokens[start : start + length + 1].astype(np.int64)


class Mix:
    """Draws rows from several streams by weight."""

    def __init__(self, folder: Path, weights: dict[str, float], seed: int) -> None:
        self.names = sorted(weights)
        total = sum(weights.values())
        self.weights = [weights[n] / total for n in self.names]
        self.random = np.random.default_rng(seed)
        self.streams = {
            n: Stream(np.load(folder / f"train-{n}.npy"), seed + i)
            for i, n in enumerate(self.names)
        }

    def batch(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """(tokens, targets); as llama.cpp does, a window begins with the begin token."""
        chosen = self.random.choice(self.names, size=rows, p=self.weights)
        block = np.stack([self.streams[str(name)].window(length) for name in chosen])
        targets = torch.from_numpy(block[:, 1:].copy())
        block[:, 0] = EOT_ID
        return torch.from_numpy(block[:, :-1].copy()), targets
