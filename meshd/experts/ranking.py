"""How often each layer's router chose each expert on a calibration text. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

Selection = tuple[tuple[int, ...], ...]
"""By block: ids of the experts that are kept, ascending; () of a block without routed experts. All
others have the same number, since GGUF has one expert count for the whole model.
"""


class RankingError(Exception):
    """There is no ranking, or none that can be believed; the message says why in one sentence."""


@dataclass(frozen=True)
class Ranking:
    """:ivar fingerprint: of the model's content (`models.fingerprint`).

    :ivar calibration: SHA-256 of the text that was counted on.
    :ivar tokens: how many were.
    :ivar counts: by block and expert; () of a block without routed experts.
    """

    fingerprint: str
    calibration: str
    tokens: int
    counts: tuple[tuple[int, ...], ...]

    @cached_property
    def digest(self) -> str:
        """16 hex digits: equal for all who chose experts by the same counts."""
        said = f"{self.fingerprint}\n{self.calibration}\n{self.counts}"
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @cached_property
    def orders(self) -> tuple[tuple[int, ...], ...]:
        """By block: all experts, most often chosen first, of equals the lower id."""
        return tuple(
            tuple(sorted(range(len(layer)), key=lambda one: (-layer[one], one)))
            for layer in self.counts
        )

    def mass(self, block: int, kept: tuple[int, ...]) -> float:
        """Share of the block's choices that fell on these experts, 0 to 1; 1 where there are none
        to choose.
        """
        counts = self.counts[block]
        total = sum(counts)
        return sum(counts[one] for one in kept) / total if total else 1.0

    def masses(self, selection: Selection) -> tuple[float, ...]:
        """What a selection keeps of each block's choices, in order, of those that have any experts;
        a shard's mass is their mean.
        """
        return tuple(self.mass(block, ids) for block, ids in enumerate(selection) if ids)
