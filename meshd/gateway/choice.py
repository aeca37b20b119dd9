"""Which engine gets a request: a pure function of the table and of what this gateway saw."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from meshd.gateway.affinity import capacity, identity, weight
from meshd.gateway.answer_quality import good_enough
from meshd.gateway.ask import Ask
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target, source_of
from meshd.gateway.speeds import Speeds, predicted_s
from meshd.quality import Budget

MAX_IN_FLIGHT_PER_TARGET = 1024

# Tokens of answer that must fit beside the prompt; clients often allow more than they mean.
_ANSWER_TOKENS = 512
# A target is near enough to the quickest one up to so many times its predicted time, and so much
# more. With 2 a request waits at most as long for its prefix as its evaluation elsewhere takes.
_PATIENCE = 2.0
_SLACK_S = 0.25


class Refusal(StrEnum):
    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    NOT_ALLOWED = "not_allowed"
    INCAPABLE = "incapable"
    TOO_LONG = "too_long"
    NOT_READY = "not_ready"
    UNREACHABLE = "unreachable"
    FULL = "full"
    QUALITY = "quality"


class Why(StrEnum):
    """Why a target was taken: for traces and headers."""

    ONLY = "only"  # there was no other
    HERE = "here"  # a free slot of this node's own
    PREFIX = "prefix"  # the conversation's own place
    WHOLE = "whole"  # all of the model, where others have a shard of it
    LOAD = "load"  # its place had too much to do, or it has none


class Chosen(msgspec.Struct, frozen=True):
    route: Route
    target: Target
    why: Why = Why.ONLY


@dataclass(frozen=True, slots=True)
class Refused:
    """:ivar route: the model's route, None when there is not exactly one.

    :ivar candidates: AMBIGUOUS: the models whose names begin so.
    :ivar lacks: INCAPABLE: what the model, or each model there is, lacks.
    :ivar prompt_tokens: TOO_LONG: of the prompt. :ivar context: and the most that a slot holds.
    :ivar quality: QUALITY: what the request asks for. :ivar below: and who misses it.
    """

    reason: Refusal
    route: Route | None = None
    candidates: tuple[str, ...] = ()
    lacks: frozenset[str] = frozenset()
    prompt_tokens: int = 0
    context: int = 0
    quality: Budget | None = None
    below: tuple[Target, ...] = ()


Choice = Chosen | Refused

_ANYTHING = Ask("")


def find_route(table: RoutingTable, model: str) -> Route | None:
    """The route of that exact name, else the first that has it as an alias."""
    for route in table.routes:
        if route.model == model:
            return route
    return next((route for route in table.routes if model in route.aliases), None)


def place(model: str, target: Target) -> str:
    """What is counted and passed over as one: an engine here, a model on another node."""
    return target.socket or f"{model}@{target.key}"


def load_of(model: str, target: Target, in_flight: Mapping[str, int]) -> int:
    """Requests that a target has: as its node last said, which may count those that we sent."""
    return max(target.busy, in_flight.get(place(model, target), 0))


def choose(
    table: RoutingTable,
    model: str,
    in_flight: Mapping[str, int],
    suspects: Collection[str],
    *,
    ask: Ask = _ANYTHING,
    speeds: Speeds | None = None,
    draw: int = 0,
    exact_tokens: int = 0,
    same_weights: str = "",
    limit: int = MAX_IN_FLIGHT_PER_TARGET,
    here_only: bool = False,
) -> Choice:
    """A ready target that the request fits: one of this node's own while it has a free slot, else
    the one that the conversation's prefix is drawn to, unless that one has too much to do. Where
    some have shards of the model, whose answers differ, a conversation's own goes before a free
    slot here, and whoever has all of the model before both.

    Two gateways that know the same choose the same target for a conversation, and different ones
    for different conversations, so that figures a second old make no stampede.

    :param model: its exact name, or an alias; `resolve` knows the rest.
    :param in_flight: requests that this gateway has at each `place`.
    :param suspects: each `Target.key` or `place` that failed and has not yet answered a probe.
    :param draw: 64 random bits, for a request without affinity; with 0 it goes to the least loaded.
    :param exact_tokens: of the prompt, once an engine counted them; then only targets that hold
        them are tried.
    :param same_weights: only targets with these weights, or where there are none with others of the
        same source: shards, or the whole of it; "" for any.
    :param limit: requests that one target may have in flight.
    :param here_only: only this node's own engines.
    """
    route = find_route(table, model)
    if route is None:
        return Refused(Refusal.UNKNOWN)
    model = route.model
    # One more than it has slots for, so that none is idle between two requests. The others
    # wait here, where it is fair: the engine's own queue is not.
    with_room = [
        one
        for one in good_enough(route, ask.quality)
        if one.ready
        and (one.socket or not here_only)
        and _goes_on(same_weights, one)
        and (not one.context or one.context > exact_tokens)
        and one.key not in suspects
        and (where := place(model, one)) not in suspects
        and in_flight.get(where, 0) < (min(limit, max(1, one.slots) + 1) if one.socket else limit)
    ]
    if route.state is not ModelState.READY or not with_room:
        return _refused(
            route, suspects, exact_tokens, same_weights, ask.quality, here_only=here_only
        )
    candidates = [target for target in with_room if not target.suspect] or with_room
    if same_weights:
        candidates = [one for one in candidates if one.weights == same_weights] or candidates
    if len(candidates) > 1 and not exact_tokens:
        candidates = _roomy(candidates, ask)
    if len(candidates) == 1:
        return Chosen(route, candidates[0])

    def sent(target: Target) -> int:
        return in_flight.get(place(model, target), 0)

    differ = not all(one.whole for one in candidates)
    key = (differ and ask.person) or ask.affinity
    own = [one for one in candidates if one.socket and sent(one) < max(1, one.slots)]
    if own and not (differ and key):
        return Chosen(route, min(own, key=lambda one: sent(one) / max(1, one.slots)), Why.HERE)
    return _spread(route, candidates, in_flight, ask, speeds or Speeds(), key, draw)


def _goes_on(weights: str, target: Target) -> bool:
    return not weights or source_of(weights) == source_of(target.weights)


def _refused(
    route: Route,
    suspects: Collection[str],
    exact_tokens: int,
    same_weights: str,
    quality: Budget | None,
    *,
    here_only: bool,
) -> Refused:
    """Why there is no target."""

    def listed_of(targets: Sequence[Target]) -> list[Target]:
        return [
            target
            for target in targets
            if (target.socket or not here_only) and _goes_on(same_weights, target)
        ]

    listed = listed_of(good_enough(route, quality))
    if quality is not None and not listed and (below := listed_of(good_enough(route, None))):
        return Refused(Refusal.QUALITY, route, quality=quality, below=tuple(below))
    holding = [one for one in listed if not one.context or one.context > exact_tokens]
    if listed and not holding:
        most = max(target.context for target in listed)
        return Refused(Refusal.TOO_LONG, route, prompt_tokens=exact_tokens, context=most)
    ready = [target for target in holding if target.ready]
    if route.state is not ModelState.READY or not ready:
        return Refused(Refusal.NOT_READY, route)
    if all(one.key in suspects or place(route.model, one) in suspects for one in ready):
        return Refused(Refusal.UNREACHABLE, route)
    return Refused(Refusal.FULL, route)


def _roomy(targets: list[Target], ask: Ask) -> list[Target]:
    """Those whose slots hold the request by its estimate; where none does, the largest: it is
    an estimate only.
    """
    tokens = ask.prompt_tokens + min(ask.max_tokens or _ANSWER_TOKENS, _ANSWER_TOKENS)
    fitting = [one for one in targets if not one.context or one.context >= tokens]
    most = max(one.context for one in targets)
    return fitting or [one for one in targets if one.context == most]


def _spread(
    route: Route,
    targets: Sequence[Target],
    in_flight: Mapping[str, int],
    ask: Ask,
    speeds: Speeds,
    own_key: int,
    draw: int,
) -> Chosen:
    """Bounded-load rendezvous, passing over targets that would take much longer than another.

    :param own_key: of the conversation, or of who has it; 0 for neither.
    """
    load = {one.key: load_of(route.model, one, in_flight) for one in targets}
    slots = {one.key: max(1, one.slots) for one in targets}
    all_load, all_slots = sum(load.values()), sum(slots.values())
    known = {one.key: speeds.of(place(route.model, one)) for one in targets}
    expected_s = {
        one.key: predicted_s(
            known[one.key],
            rtt_ms=one.rtt_ms,
            load=load[one.key],
            slots=slots[one.key],
            prompt_tokens=ask.prompt_tokens,
        )
        for one in targets
    }

    def cost(target: Target) -> tuple[float, float, float, bool]:
        key = target.key
        waves = max(0, load[key] + 1 - slots[key]) / slots[key]
        return waves, load[key] / slots[key], target.rtt_ms, not target.socket

    key = own_key or draw
    if not key:
        return Chosen(route, min(targets, key=cost), Why.LOAD)
    order = sorted(
        targets,
        key=lambda one: weight(key, identity(one.node, route.model), slots[one.key]),
        reverse=True,
    )
    within = [one for one in order if load[one.key] < capacity(all_load, slots[one.key], all_slots)]
    soon_s = _PATIENCE * min(expected_s[one.key] for one in within) + _SLACK_S
    near = [one for one in within if expected_s[one.key] <= soon_s]
    whole: list[Target] = []
    if not all(one.whole for one in near):
        # A shard's whole answer may be quicker, not only its first word.
        done_s = {one.key: expected_s[one.key] + known[one.key].service_s for one in within}
        soon_s = _PATIENCE * min(done_s.values()) + _SLACK_S
        whole = [one for one in near if one.whole and done_s[one.key] <= soon_s]
        near = whole or near
    if not own_key:
        # The better of two: nearly as even as the best of all, and no stampede on stale figures
        # (Mitzenmacher, "The power of two choices in randomized load balancing", 2001).
        return Chosen(route, min(near[:2], key=cost), Why.LOAD)
    if near[0] is order[0]:
        return Chosen(route, near[0], Why.PREFIX)
    return Chosen(route, near[0], Why.WHOLE if whole else Why.LOAD)


def servable(table: RoutingTable, suspects: Collection[str]) -> tuple[str, ...]:
    """The models that a request could be sent for now."""
    return tuple(
        route.model
        for route in table.routes
        if isinstance(choose(table, route.model, {}, suspects), Chosen)
    )
