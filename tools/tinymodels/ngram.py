"""A trigram model of the whole training text, as a teacher for short training runs.

A run on two shared cores sees only a part of the corpus.  Counting sees all of
it in seconds: mixing the counted distribution of the next token into the target
gives the network that knowledge, with far less noise than single tokens do.
Absolute discounting (Ney, Essen and Kneser, "On structuring probabilistic
dependences in stochastic language modelling", 1994); targets from a teacher
(Hinton et al., arXiv:1503.02531).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DISCOUNT = 0.75


class Trigram:
    """Interpolated trigram probabilities: bigrams as a table, trigrams as sorted lists."""

    def __init__(self, tokens: np.ndarray, vocabulary: int) -> None:
        v = self.vocabulary = vocabulary
        tokens = tokens.astype(np.int64)
        single = np.bincount(tokens, minlength=v) + 0.1
        pairs = tokens[:-1] * v + tokens[1:]
        unique, count = np.unique(pairs, return_counts=True)
        first = unique // v
        total = np.maximum(np.bincount(tokens[:-1], minlength=v), 1)
        spread = np.bincount(first, minlength=v)
        table = np.zeros((v, v), dtype=np.float32)
        table[first, unique % v] = (count - DISCOUNT) / total[first]
        left = np.where(spread > 0, DISCOUNT * spread / total, 1.0)
        table += np.outer(left, single / single.sum()).astype(np.float32)
        self.table = torch.from_numpy(table)
        unique, count = np.unique(pairs[:-1] * v + tokens[2:], return_counts=True)
        self.following = unique % v
        self.contexts, self.start, self.kinds = np.unique(
            unique // v, return_index=True, return_counts=True
        )
        seen = np.add.reduceat(count, self.start)
        self.left = DISCOUNT * self.kinds / seen
        self.share = (count - DISCOUNT) / np.repeat(seen, self.kinds)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The distribution after each position of tokens [rows, time]."""
        rows, time = tokens.shape
        result = self.table[tokens.flatten()]
        now = tokens.numpy()
        context = now[:, :-1] * self.vocabulary + now[:, 1:]
        place = np.searchsorted(self.contexts, context)
        place[place == len(self.contexts)] = 0
        row, column = np.nonzero(self.contexts[place] == context)
        place = place[row, column]
        position = row * time + column + 1
        result[torch.from_numpy(position)] *= torch.from_numpy(
            self.left[place].astype(np.float32)
        ).unsqueeze(1)
        kinds = self.kinds[place]
        within = np.arange(kinds.sum()) - np.repeat(np.cumsum(kinds) - kinds, kinds)
        entry = np.repeat(self.start[place], kinds) + within
        index = np.repeat(position, kinds) * self.vocabulary + self.following[entry]
        share = torch.from_numpy(self.share[entry].astype(np.float32))
        result.view(-1).index_add_(0, torch.from_numpy(index), share)
        return result.view(rows, time, self.vocabulary)
