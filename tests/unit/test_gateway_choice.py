"""Which engine gets a request."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.choice import Chosen, Refusal, Refused, choose, find_route, servable
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target

SOCKETS = [f"/run/{letter}.sock" for letter in "abcde"]

targets = st.builds(
    Target,
    node=st.sampled_from(["local", "far"]),
    socket=st.sampled_from(SOCKETS),
    ready=st.booleans(),
    slots=st.integers(1, 8),
)
routes = st.builds(
    Route,
    model=st.sampled_from(["m", "n", "o"]),
    state=st.sampled_from(ModelState),
    targets=st.lists(targets, max_size=5).map(tuple),
    aliases=st.lists(st.sampled_from(["m", "x", "y"]), max_size=2).map(tuple),
)
tables = st.builds(
    RoutingTable,
    node=st.sampled_from(["local", "other"]),
    routes=st.lists(routes, max_size=4, unique_by=lambda route: route.model).map(tuple),
)
loads = st.dictionaries(st.sampled_from(SOCKETS), st.integers(0, 12))
suspects = st.frozensets(st.sampled_from(SOCKETS))
names = st.sampled_from(["m", "n", "o", "x", "y", "z"])


@given(tables, names, loads, suspects)
def test_only_a_ready_reachable_target_of_the_model_is_chosen(
    table: RoutingTable, model: str, load: Mapping[str, int], suspect: frozenset[str]
) -> None:
    choice = choose(table, model, load, suspect, limit=10)
    route = find_route(table, model)
    usable = [
        target
        for target in (route.targets if route and route.state is ModelState.READY else ())
        if target.ready and target.socket not in suspect
    ]
    if isinstance(choice, Chosen):
        assert choice.route == route
        assert choice.target in usable
        assert load.get(choice.target.socket, 0) < _room(choice.target)
        usable = [one for one in usable if load.get(one.socket, 0) < _room(one)]
        room = [one for one in usable if load.get(one.socket, 0) < one.slots]
        least = min(load.get(one.socket, 0) / one.slots for one in room or usable)
        assert load.get(choice.target.socket, 0) / choice.target.slots == least
    else:
        assert all(load.get(target.socket, 0) >= _room(target) for target in usable)


def _room(target: Target) -> int:
    """One more than it has slots, so that none is idle between two requests."""
    return min(10, target.slots + 1)


@given(tables, names, loads, suspects)
def test_a_refusal_says_the_first_thing_that_is_in_the_way(
    table: RoutingTable, model: str, load: Mapping[str, int], suspect: frozenset[str]
) -> None:
    choice = choose(table, model, load, suspect, limit=10)
    if isinstance(choice, Chosen):
        return
    route = find_route(table, model)
    if route is None:
        expected = Refusal.UNKNOWN
    elif route.state is not ModelState.READY or not any(t.ready for t in route.targets):
        expected = Refusal.NOT_READY
    elif all(t.socket in suspect for t in route.targets if t.ready):
        expected = Refusal.UNREACHABLE
    else:
        expected = Refusal.FULL
    assert choice == Refused(expected, route)


@given(tables, names)
def test_an_exact_name_goes_before_an_alias(table: RoutingTable, model: str) -> None:
    route = find_route(table, model)
    exact = [candidate for candidate in table.routes if candidate.model == model]
    if exact:
        assert route == exact[0]
    elif route is not None:
        assert model in route.aliases
    else:
        assert not any(model in candidate.aliases for candidate in table.routes)


@given(tables, suspects)
def test_servable_is_what_would_be_chosen_when_idle(
    table: RoutingTable, suspect: frozenset[str]
) -> None:
    for route in table.routes:
        chosen = isinstance(choose(table, route.model, {}, suspect), Chosen)
        assert (route.model in servable(table, suspect)) is chosen
