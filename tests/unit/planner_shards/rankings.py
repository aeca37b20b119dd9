"""Rankings for tests: counts that are made up, of models that are not there."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from meshd.experts.ranking import Ranking


def ranking(*layers: tuple[int, ...]) -> Ranking:
    return Ranking("f" * 16, "c" * 64, 1000, layers)


def falling(layers: int, experts: int, seed: int = 1, spread: float = 1.0) -> Ranking:
    """As routers choose: a few often, many now and then, other ones in each layer."""
    rng = random.Random(seed)
    return ranking(
        *(
            tuple(int(1000 * rng.lognormvariate(0, spread)) for _ in range(experts))
            for _ in range(layers)
        )
    )


@st.composite
def rankings(draw: st.DrawFn, experts: int, most_layers: int = 4) -> Ranking:
    count = st.one_of(st.integers(0, 3), st.integers(0, 10**6))
    layer = st.lists(count, min_size=experts, max_size=experts).map(tuple)
    dense = st.just(())
    layers = draw(st.lists(st.one_of(layer, layer, dense), min_size=0, max_size=most_layers))
    return ranking(*layers, draw(layer))
