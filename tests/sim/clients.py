"""People who ask for models: what is popular moves, and now and then one model is all the rage."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Taste:
    """:ivar total: requests a minute over the whole mesh. :ivar every_s: gateways are told in turn.

    :ivar shift_s: between two changes of what is popular. :ivar rage: part of changes that make
        one model ask for as much as all others together.
    """

    total: float = 600.0
    every_s: float = 2.0
    shift_s: float = 120.0
    rage: float = 0.3


class Clients:
    """:ivar shifts: how often what is popular has moved."""

    def __init__(self, seed: int, models: list[str], taste: Taste) -> None:
        self.taste = taste
        self.random = random.Random(f"clients {seed}")
        self.order = list(models)
        self.random.shuffle(self.order)
        self.raging = ""
        self.shifts = 0

    def shift(self) -> None:
        """A few models trade places; another one may be the rage, or none."""
        self.shifts += 1
        for _ in range(max(1, len(self.order) // 20)):
            one, other = (self.random.randrange(len(self.order)) for _ in range(2))
            self.order[one], self.order[other] = self.order[other], self.order[one]
        rages = self.random.random() < self.taste.rage
        self.raging = self.random.choice(self.order) if rages else ""

    def requests(self, part: float) -> dict[str, int]:
        """What one of the gateways is asked in `every_s`, at this part of all traffic (Zipf)."""
        weights = {model: 1.0 / place for place, model in enumerate(self.order, 1)}
        whole = sum(weights.values())
        if self.raging:
            weights[self.raging] += whole
            whole *= 2
        number = self._poisson(self.taste.total / 60 * self.taste.every_s * part)
        found: dict[str, int] = {}
        for model in self.random.choices(list(weights), list(weights.values()), k=number):
            found[model] = found.get(model, 0) + 1
        return found

    def _poisson(self, mean: float) -> int:
        """Knuth's, in steps that do not underflow."""
        count = 0
        while mean > 0:
            step = min(mean, 30.0)
            mean -= step
            product, limit = self.random.random(), math.exp(-step)
            while product > limit:
                count += 1
                product *= self.random.random()
        return count
