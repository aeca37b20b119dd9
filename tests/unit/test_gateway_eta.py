"""How long until a request is served, as far as that can be told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.eta import Eta, Service, elapsed_s, eta, load_left_s
from meshd.gateway.routes import ModelState, Route, Target


def loading(*, load_s: float, since_s: float, slots: int = 1) -> Target:
    return Target("n", "/run/x", False, slots, load_s=load_s, since_s=since_s)


def ready(slots: int = 1, *, suspect: bool = False) -> Target:
    return Target("n", "/run/y", True, slots, suspect=suspect)


def route(*targets: Target) -> Route:
    return Route("m", ModelState.LOADING, targets)


def served(*seconds: float) -> Service:
    service = Service()
    for took_s in seconds:
        service = service.after(took_s)
    return service


KNOWN = served(10.0, 10.0, 10.0)


@given(st.floats(1, 1e4), st.floats(0, 1e5))
def test_what_is_left_of_a_load_is_never_nothing_and_grows_when_it_is_late(
    load_s: float, elapsed: float
) -> None:
    left_s = load_left_s(load_s, elapsed)
    assert left_s >= 0.05 * load_s
    if elapsed < 0.9 * load_s:
        assert left_s == pytest.approx(load_s - elapsed)
    if elapsed > load_s:
        assert load_left_s(load_s, elapsed + 10.0) > left_s


def test_the_first_few_count_alike_and_then_the_last_ones_most() -> None:
    assert served().known is False
    assert served(1.0, 2.0).known is False
    assert served(1.0, 2.0, 3.0) == Service(2.0, 3)
    service = served(*[1.0] * 20, *[9.0] * 10)
    assert 7.5 < service.mean_s < 9.0


@pytest.mark.parametrize(
    ("targets", "ahead", "service", "expected"),
    [
        ((), 0, KNOWN, Eta()),
        ((loading(load_s=60, since_s=80),), 0, Service(), Eta(40.0, False, True)),
        # Four fill its slots when it has loaded, the fifth waits for one of them.
        ((loading(load_s=60, since_s=80, slots=4),), 3, KNOWN, Eta(40.0, False, True)),
        ((loading(load_s=60, since_s=80, slots=4),), 4, KNOWN, Eta(42.5, False, True)),
        ((loading(load_s=0, since_s=80),), 0, KNOWN, Eta(None, False, True)),
        ((loading(load_s=10, since_s=80),), 0, KNOWN, Eta(3.0, True, True)),
        # Of two that load, the one that is done first.
        (
            (loading(load_s=60, since_s=80), loading(load_s=30, since_s=95)),
            0,
            Service(),
            Eta(25.0, False, True),
        ),
        ((ready(2),), 3, KNOWN, Eta(20.0)),
        ((ready(2),), 3, Service(), Eta(None)),
        # One that is ready counts, not the one that loads; nor one that is missed.
        ((ready(1), loading(load_s=600, since_s=99)), 0, KNOWN, Eta(10.0)),
        (
            (ready(1, suspect=True), loading(load_s=60, since_s=80)),
            0,
            KNOWN,
            Eta(40.0, False, True),
        ),
    ],
)
def test_when_a_request_may_be_served(
    targets: tuple[Target, ...], ahead: int, service: Service, expected: Eta
) -> None:
    assert eta(route(*targets), ahead, service, now_s=100.0) == expected


def test_since_when_a_model_loads() -> None:
    assert elapsed_s(route(), 100.0) is None
    assert elapsed_s(route(ready()), 100.0) is None
    assert elapsed_s(route(loading(load_s=0, since_s=90), loading(load_s=0, since_s=70)), 100) == 30
    assert elapsed_s(route(loading(load_s=0, since_s=120)), 100.0) == 0
