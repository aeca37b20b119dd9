"""A recording replayed in virtual time over replicas and several gateways."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from meshd.gateway.affinity import mix
from tools.bench_routing.recording import Conversation
from tools.bench_routing.replica import DECODE_TOKENS_S, Prompt, Replica, Request
from tools.bench_routing.routers import Router, Seen, body_of

_NEWS_S = 1.0
"""How often a replica says what it has to do."""
_PROMPTS_A_SLOT = 5


@dataclass(frozen=True, slots=True)
class Away:
    """A replica that is not in the table for a while; times are parts of the recording's length."""

    replica: int
    left: float
    back: float


@dataclass(slots=True)
class Outcome:
    """:ivar hit_rate: prompt tokens that need not be evaluated, of all.

    :ivar imbalance: a slot's time on the busiest replica to the mean of all slots.
    :ivar first_token_s: of all requests.
    :ivar utilisation: part of all slots' time that was used.
    """

    hit_rate: float
    imbalance: float
    first_token_s: list[float]
    utilisation: float

    def quantile_s(self, share: float) -> float:
        ordered = sorted(self.first_token_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def replay(
    conversations: Sequence[Conversation],
    routers: Callable[[int], Router],
    *,
    slots: Sequence[int],
    gateways: int = 4,
    utilisation: float = 0.6,
    here: bool = False,
    away: Away | None = None,
    seed: int = 1,
) -> Outcome:
    """Each request comes by a gateway drawn at random, so that none can remember anything.

    :param routers: makes the router of a gateway, by its number. :param slots: of each replica.
    :param utilisation: of all slots, that the conversations' pace is set to, were there nothing
        but answers to write.
    :param here: a gateway on each replica's node instead, and each conversation keeps to its own.
    """
    run = _Run(
        conversations,
        [Replica(slots=count, prompts=_PROMPTS_A_SLOT * count) for count in slots],
        [routers(number) for number in range(len(slots) if here else gateways)],
        random.Random(seed),
        _pace_s(conversations, utilisation * sum(slots)),
        here,
        away,
    )
    run.play()
    busy_s = sum(one.busy_s for one in run.replicas)
    return Outcome(
        hit_rate=sum(one.hits for one in run.replicas) / sum(one.asked for one in run.replicas),
        imbalance=max(one.busy_s / one.slots for one in run.replicas) / (busy_s / sum(slots)),
        first_token_s=run.first_token_s,
        utilisation=busy_s / (run.now_s * sum(slots)),
    )


def _pace_s(conversations: Sequence[Conversation], busy_slots: float) -> float:
    answered = sum(turn.answered for one in conversations for turn in one.turns)
    return answered / DECODE_TOKENS_S / busy_slots / conversations[-1].start_s


@dataclass(slots=True)
class _Run:
    """:ivar events: what happens when, and a number that keeps those of one moment in order.

    :ivar sent: requests by gateway and replica. :ivar said: each replica's load when it last said.
    """

    conversations: Sequence[Conversation]
    replicas: list[Replica]
    gateways: list[Router]
    chance: random.Random
    pace_s: float
    here: bool
    away: Away | None
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    count: int = 0
    now_s: float = 0.0
    sent: list[list[int]] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    said_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)

    def play(self) -> None:
        self.sent = [[0] * len(self.replicas) for _ in self.gateways]
        self.said = [0] * len(self.replicas)
        for number, one in enumerate(self.conversations):
            self._at(one.start_s * self.pace_s, partial(self._ask, number, 0, 0))
        while self.events:
            self.now_s, _, happen = heapq.heappop(self.events)
            if self.now_s >= self.said_s + _NEWS_S:
                self.said, self.said_s = [one.load for one in self.replicas], self.now_s
            happen()

    def _at(self, when_s: float, happen: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (when_s, self.count, happen))

    def _ask(self, number: int, turn: int, said_tokens: int) -> None:
        """:param said_tokens: of all turns before."""
        one = self.conversations[number]
        question = one.turns[turn]
        prompt = Prompt(
            number,
            one.system,
            one.system_tokens,
            one.system_tokens + said_tokens + question.asked,
            question.answered,
        )
        gateways = len(self.gateways)
        gateway = mix(number) % gateways if self.here else self.chance.randrange(gateways)
        request = Request(prompt, turn, gateway, self.now_s)
        where = self._pick(request)
        self.sent[gateway][where] += 1
        replica = self.replicas[where]
        if replica.running < replica.slots:
            self._begin(where, request)
        else:
            replica.queue.append(request)

    def _pick(self, request: Request) -> int:
        length_s = self.conversations[-1].start_s * self.pace_s
        away = self.away
        gone = away.replica if away and away.left <= self.now_s / length_s < away.back else None
        seen = Seen(
            [number for number in range(len(self.replicas)) if number != gone],
            [one.slots for one in self.replicas],
            self.said,
            self.sent[request.gateway],
            [one.load for one in self.replicas],
            request.gateway if self.here else None,
        )
        prompt = request.prompt
        body = body_of(prompt.conversation, prompt.system, request.turn)
        return self.gateways[request.gateway].pick(prompt.conversation, body, prompt.tokens, seen)

    def _begin(self, where: int, request: Request) -> None:
        served = self.replicas[where].begin(request.prompt)
        self.first_token_s.append(self.now_s + served.first_s - request.asked_s)
        self.gateways[request.gateway].finished(
            where, served.fresh_tokens, served.first_s, served.last_s
        )
        self._at(self.now_s + served.last_s, lambda: self._end(where, request))

    def _end(self, where: int, request: Request) -> None:
        self.sent[request.gateway][where] -= 1
        replica = self.replicas[where]
        replica.running -= 1
        if replica.queue:
            self._begin(where, replica.queue.popleft())
        prompt, turn = request.prompt, request.turn + 1
        turns = self.conversations[prompt.conversation].turns
        if turn < len(turns):
            said_tokens = prompt.tokens + prompt.answered - prompt.shared
            self._at(
                self.now_s + turns[turn].think_s,
                lambda: self._ask(prompt.conversation, turn, said_tokens),
            )


def homes(
    router: Router, conversations: int, slots: Sequence[int], alive: Sequence[int]
) -> list[int]:
    """Where each conversation goes when nobody has anything to do."""
    idle = [0] * len(slots)
    seen = Seen(alive, slots, idle, idle, idle)
    return [
        router.pick(number, body_of(number, 0, 0), 100, seen) for number in range(conversations)
    ]


def remapped(router: Router, conversations: int, slots: Sequence[int]) -> float:
    """Of the conversations at home on nodes that stay, those that move when another one leaves."""
    everyone = list(range(len(slots)))
    before = homes(router, conversations, slots, everyone)
    after = homes(router, conversations, slots, everyone[1:])
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one != 0]
    return sum(one != other for one, other in pairs) / max(1, len(pairs))
