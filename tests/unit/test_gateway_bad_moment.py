"""What a gateway makes of how quick each place was."""

from __future__ import annotations

import pytest

from meshd.gateway.ask import Ask
from meshd.gateway.choice import Chosen, choose, place
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.gateway.speeds import Speeds

TARGETS = tuple(Target(name, "", True, 4, address=f"{name}:9338") for name in ("a", "b"))
TABLE = RoutingTable(routes=(Route("m", ModelState.READY, TARGETS),))
A, B = (place("m", target) for target in TARGETS)


def _served(speeds: Speeds, where: str, rate: float, count: int = 1) -> None:
    for _ in range(count):
        speeds.evaluated(where, 1000, 1000 / rate)
        speeds.served(where, 1.0)


def _drawn_to(name: str) -> int:
    """A conversation that belongs to this node where both are as quick."""
    for key in range(1, 1000):
        found = choose(TABLE, "m", {}, (), ask=Ask("m", prompt_tokens=1000, affinity=key))
        if isinstance(found, Chosen) and found.target.node == name:
            return key
    raise AssertionError(name)


def test_a_place_is_as_quick_as_it_was_measured() -> None:
    speeds = Speeds()
    _served(speeds, A, 5000, 3)
    _served(speeds, B, 50, 3)
    assert speeds.of(B).prefill_tokens_s == pytest.approx(50)
    assert speeds.of(A).prefill_tokens_s == pytest.approx(5000, rel=0.2)


def test_a_place_that_had_a_bad_moment_is_asked_again() -> None:
    """It is passed over, so it cannot show by itself that it is well again."""
    speeds, ask = Speeds(), Ask("m", prompt_tokens=1000, affinity=_drawn_to("b"))
    _served(speeds, A, 5000, 10)
    _served(speeds, B, 50, 10)
    passed_over = 0
    while passed_over < 1000:
        found = choose(TABLE, "m", {}, (), ask=ask, speeds=speeds)
        assert isinstance(found, Chosen)
        if found.target.node == "b":
            break
        passed_over += 1
        _served(speeds, A, 5000)
    assert 10 < passed_over < 500
    # Still slow: it is left alone for a while again.
    _served(speeds, B, 50)
    found = choose(TABLE, "m", {}, (), ask=ask, speeds=speeds)
    assert isinstance(found, Chosen)
    assert found.target.node == "a"
