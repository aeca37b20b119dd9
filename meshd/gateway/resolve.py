"""Which model a request means: by name, alias, the beginning of a name, or `auto`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from meshd.gateway.affinity import identity, weight
from meshd.gateway.answer_quality import EXACT, good_enough
from meshd.gateway.ask import Ask
from meshd.gateway.choice import Refusal, Refused, find_route, load_of, place
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target

AUTO = "auto"
"""The name under which the gateway chooses the model, unless a model or an alias is called so."""

# Without a template of its own llama-server talks in a common one, so a model that completes can
# also chat.
_SERVED_BY: Mapping[str, frozenset[str]] = {
    "chat": frozenset({"chat", "completion"}),
    "completion": frozenset({"chat", "completion"}),
}
# What llama-server leaves out where the model's template has no place for it: the answer is text,
# which is as good as any unless a call is required.
_BETTER_WITH = frozenset({"tools"})

_WARMEST = (ModelState.READY, ModelState.LOADING, ModelState.WAITING, ModelState.FAILED)


def everything(_: str) -> bool:
    """An API key that may use all models."""
    return True


def lacking(route: Route, needs: Iterable[str]) -> frozenset[str]:
    """The needs that the model does not meet; none where the table leaves open what it does."""
    if not route.capabilities:
        return frozenset()
    return frozenset(
        need
        for need in needs
        if _SERVED_BY.get(need, frozenset({need})).isdisjoint(route.capabilities)
    )


def resolve(
    table: RoutingTable,
    ask: Ask,
    *,
    allowed: Callable[[str], bool] = everything,
    in_flight: Mapping[str, int] | None = None,
    suspects: Collection[str] = (),
    exact_tokens: int = 0,
) -> Route | Refused:
    """The route of the model that the request means.

    An exact name goes before an alias, that before `auto`, and that before the beginning of one
    model's name or alias.

    :param allowed: whether the client's key may use a model, by its exact name.
    :param in_flight, suspects: as for `choose`; only `auto` heeds them.
    :param exact_tokens: as for `choose`.
    """
    route = find_route(table, ask.model)
    if route is None and ask.model == AUTO:
        routes = [route for route in table.routes if allowed(route.model)]
        return _auto(routes, ask, in_flight or {}, suspects, exact_tokens)
    if route is None:
        found = [
            route for route in table.routes if allowed(route.model) and _begins(route, ask.model)
        ]
        if len(found) > 1:
            names = tuple(sorted(route.model for route in found))
            return Refused(Refusal.AMBIGUOUS, candidates=names)
        if not found:
            return Refused(Refusal.UNKNOWN)
        route = found[0]
    if not allowed(route.model):
        return Refused(Refusal.NOT_ALLOWED, route)
    needs = ask.needs if ask.tools.must_call else ask.needs - _BETTER_WITH
    if lacks := lacking(route, needs):
        return Refused(Refusal.INCAPABLE, route, lacks=lacks)
    return route


def _begins(route: Route, start: str) -> bool:
    return bool(start) and any(name.startswith(start) for name in (route.model, *route.aliases))


def _auto(
    routes: list[Route],
    ask: Ask,
    in_flight: Mapping[str, int],
    suspects: Collection[str],
    exact_tokens: int,
) -> Route | Refused:
    """The warmest model that can do it; among equals the one here, then the one with a free slot,
    the larger context, the better quality; none of less quality than is asked for, while there is
    another. The same one for all turns of a conversation, as long
    as nothing of that changes.
    """
    able = [route for route in routes if not lacking(route, ask.needs)]
    # What is known to be able goes before what may not be.
    able = [route for route in able if route.capabilities] or able
    if not able:
        if not routes:
            return Refused(Refusal.UNKNOWN)
        least = min((lacking(route, ask.needs) for route in routes), key=lambda one: len(one))
        return Refused(Refusal.INCAPABLE, lacks=least)
    holding = [route for route in able if not 0 < _context(route) <= exact_tokens]
    if not holding:
        most = max(map(_context, able))
        return Refused(Refusal.TOO_LONG, prompt_tokens=exact_tokens, context=most)

    # Of what is not served yet nobody knows how good it will be.
    holding = [
        route for route in holding if not route.targets or good_enough(route, ask.quality)
    ] or holding

    def rank(route: Route) -> tuple[object, ...]:
        model = route.model
        usable = [
            target
            for target in good_enough(route, ask.quality)
            if target.ready and target.key not in suspects and place(model, target) not in suspects
        ]
        free = [one for one in usable if load_of(model, one, in_flight) < max(1, one.slots)]
        return (
            0 < _context(route) < ask.prompt_tokens,  # it may yet fit: an estimate
            0 if usable else 1 + _WARMEST.index(route.state),
            not any(target.socket for target in free),
            not free,
            -_context(route),
            not any(one.whole for one in usable) if usable else route.quality != EXACT,
            -weight(ask.affinity, identity("", model)),
            model,
        )

    return min(holding, key=rank)


def _context(route: Route) -> int:
    """Tokens that its largest slot holds, 0 when that is not known."""

    def size(target: Target) -> int:
        return target.context

    if any(not target.context for target in route.targets):
        return route.context
    return max(map(size, route.targets), default=route.context)
