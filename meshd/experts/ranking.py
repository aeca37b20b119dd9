"""How often each layer's router chose each expert on a calibration text. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

Selection = tuple[tuple[int, ...], ...]
"""By block: ids of the experts that are kept, ascending; () of a block without routed experts. All
others have the same number, since GGUF has one expert count for the whole model.
"""


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
