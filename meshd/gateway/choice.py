"""Which engine gets a request: a pure function of the table and of what this gateway saw."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from meshd.gateway.routes import ModelState, Route, RoutingTable, Target

MAX_IN_FLIGHT_PER_TARGET = 1024


class Refusal(StrEnum):
    UNKNOWN = "unknown"
    NOT_READY = "not_ready"
    UNREACHABLE = "unreachable"
    FULL = "full"
    INCAPABLE = "incapable"


# What a model must be good for, by endpoint; one of these is enough. Without a template of its
# own llama-server talks in a common one, so a model that completes can also chat.
NEEDS: Mapping[str, frozenset[str]] = {
    "/v1/chat/completions": frozenset({"chat", "completion"}),
    "/v1/completions": frozenset({"chat", "completion"}),
    "/v1/embeddings": frozenset({"embeddings"}),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    route: Route
    target: Target


@dataclass(frozen=True, slots=True)
class Refused:
    """:ivar route: the model's route, None when the model is unknown."""

    reason: Refusal
    route: Route | None = None


Choice = Chosen | Refused


def find_route(table: RoutingTable, model: str) -> Route | None:
    """The route of that exact name, else the first that has it as an alias."""
    for route in table.routes:
        if route.model == model:
            return route
    return next((route for route in table.routes if model in route.aliases), None)


def place(model: str, target: Target) -> str:
    """What is counted and passed over as one: an engine here, a model on another node."""
    return target.socket or f"{model}@{target.key}"


def choose(
    table: RoutingTable,
    model: str,
    in_flight: Mapping[str, int],
    suspects: Collection[str],
    *,
    needs: frozenset[str] = frozenset(),
    limit: int = MAX_IN_FLIGHT_PER_TARGET,
    here_only: bool = False,
) -> Choice:
    """A ready target: one of this node's own while it has a free slot, else the least loaded.

    Load is (busy as its node last said + sent there by us) / slots; among equals the nearest.

    :param in_flight: requests that this gateway has at each `place`.
    :param suspects: each `Target.key` or `place` that failed and has not yet answered a probe.
    :param needs: one of these the model must be good for; a table may leave it open.
    :param limit: requests that one target may have in flight.
    :param here_only: only this node's own engines.
    """
    route = find_route(table, model)
    if route is None:
        return Refused(Refusal.UNKNOWN)
    if needs and route.capabilities and needs.isdisjoint(route.capabilities):
        return Refused(Refusal.INCAPABLE, route)
    ready = [
        target for target in route.targets if target.ready and (target.socket or not here_only)
    ]
    if route.state is not ModelState.READY or not ready:
        return Refused(Refusal.NOT_READY, route)
    reachable = [
        target
        for target in ready
        if target.key not in suspects and place(route.model, target) not in suspects
    ]
    if not reachable:
        return Refused(Refusal.UNREACHABLE, route)

    def sent(target: Target) -> int:
        return in_flight.get(place(route.model, target), 0)

    def cost(target: Target) -> tuple[float, float, bool]:
        busy = sent(target) if target.socket else target.busy + sent(target)
        return busy / max(1, target.slots), target.rtt_ms, not target.socket

    with_room = [target for target in reachable if sent(target) < limit]
    if not with_room:
        return Refused(Refusal.FULL, route)
    candidates = [target for target in with_room if not target.suspect] or with_room
    own = [one for one in candidates if one.socket and sent(one) < max(1, one.slots)]
    return Chosen(route, min(own or candidates, key=cost))


def servable(table: RoutingTable, suspects: Collection[str]) -> tuple[str, ...]:
    """The models that a request could be sent for now."""
    return tuple(
        route.model
        for route in table.routes
        if isinstance(choose(table, route.model, {}, suspects), Chosen)
    )
