"""Ways to choose a replica: meshd's own, and the usual ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from meshd.gateway.affinity import identity, mix, weight
from meshd.gateway.ask import Ask, read
from meshd.gateway.choice import Chosen, choose, place
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.gateway.speeds import Speeds

MODEL = "m"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a gateway knows when it has to choose.

    :ivar alive: replicas in its table. :ivar busy: load as each last said, a second old at most.
    :ivar sent: requests that this gateway has there now. :ivar load: as it is, for those who know
        more than a gateway can. :ivar here: the replica on its own node, None without one.
    """

    alive: Sequence[int]
    slots: Sequence[int]
    busy: Sequence[int]
    sent: Sequence[int]
    load: Sequence[int]
    here: int | None = None


class Router(Protocol):
    def pick(self, conversation: int, body: bytes, tokens: int, seen: Seen) -> int: ...

    def finished(self, replica: int, fresh_tokens: int, first_s: float, last_s: float) -> None: ...


@dataclass(slots=True)
class Meshd:
    """One gateway with `choose` as it is used."""

    speeds: Speeds = field(default_factory=Speeds)

    def pick(self, conversation: int, body: bytes, tokens: int, seen: Seen) -> int:
        asked = read("/v1/chat/completions", body)
        ask = Ask(asked.model, prompt_tokens=tokens, affinity=asked.affinity)
        targets = tuple(
            target(one, slots=seen.slots[one], busy=seen.busy[one], here=one == seen.here)
            for one in seen.alive
        )
        table = RoutingTable(routes=(Route(MODEL, ModelState.READY, targets),))
        # An engine's own gateway sees all that it has.
        in_flight = {
            place(MODEL, one): (seen.load if one.socket else seen.sent)[int(one.node)]
            for one in targets
        }
        choice = choose(table, MODEL, in_flight, (), ask=ask, speeds=self.speeds)
        assert isinstance(choice, Chosen)
        return int(choice.target.node)

    def finished(self, replica: int, fresh_tokens: int, first_s: float, last_s: float) -> None:
        where = place(MODEL, target(replica))
        self.speeds.evaluated(where, fresh_tokens, first_s)
        self.speeds.served(where, last_s)


def target(number: int, *, slots: int = 1, busy: int = 0, here: bool = False) -> Target:
    """A replica on another node, or on this one."""
    if here:
        return Target(str(number), f"/run/{number}.sock", True, slots)
    return Target(str(number), "", True, slots, address=f"node{number}:9338", busy=busy)


@dataclass(slots=True)
class Simple:
    """A router that asks for nothing but figures."""

    choose: Callable[[int, Seen], int]

    def pick(self, conversation: int, body: bytes, tokens: int, seen: Seen) -> int:
        return self.choose(conversation, seen)

    def finished(self, replica: int, fresh_tokens: int, first_s: float, last_s: float) -> None:
        pass


def round_robin() -> Router:
    count = iter(range(2**62))
    return Simple(lambda _, seen: seen.alive[next(count) % len(seen.alive)])


def at_random(seed: int) -> Router:
    chance = random.Random(seed)
    return Simple(lambda _, seen: chance.choice(seen.alive))


def plain_hash() -> Router:
    """Rendezvous alone: the conversation's place, whatever it has to do."""
    return Simple(
        lambda conversation, seen: max(
            seen.alive,
            key=lambda one: weight(mix(conversation), identity(str(one), MODEL), seen.slots[one]),
        )
    )


def least_loaded(seed: int) -> Router:
    """By what a gateway knows; among equals by chance."""
    chance = random.Random(seed)

    def pick(_: int, seen: Seen) -> int:
        return min(
            seen.alive,
            key=lambda one: (
                max(seen.busy[one], seen.sent[one]) / seen.slots[one],
                chance.random(),
            ),
        )

    return Simple(pick)


def sticky() -> Router:
    """Perfect: knows where each conversation was, and all loads as they are. Share it among
    gateways: a new conversation goes where the fewest are at home.
    """
    homes: dict[int, int] = {}

    def pick(conversation: int, seen: Seen) -> int:
        if homes.get(conversation) not in seen.alive:
            homes[conversation] = min(seen.alive, key=lambda one: seen.load[one] / seen.slots[one])
        return homes[conversation]

    return Simple(pick)


def body_of(conversation: int, system: int, turn: int) -> bytes:
    """As a client would send it: with all that was said so far."""
    said = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": f"{conversation}.{number}"}
        for number in range(2 * turn + 1)
    ]
    messages = [{"role": "system", "content": f"system prompt {system}"}, *said]
    return msgspec.json.encode({"model": MODEL, "messages": messages, "stream": True})
