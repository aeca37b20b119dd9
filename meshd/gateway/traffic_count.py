"""Counts requests and tokens where they enter the mesh. Bounded, whatever clients ask for."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from meshd.gateway.choice import place
from meshd.gateway.exchange import Exchange
from meshd.gateway.routes import RoutingTable
from meshd.gateway.traffic import (
    MAX_MODELS,
    MAX_NAME_CHARACTERS,
    MAX_NODES,
    MAX_UNKNOWN,
    ModelTraffic,
    TrafficReport,
)

# The moving average forgets half of what was in seven seconds.
_AVERAGE_S = 10.0
_MAX_KNOWN = MAX_MODELS - MAX_UNKNOWN


@dataclass(slots=True)
class _Counters:
    requests: int = 0
    misses: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    rate: float = 0.0
    rate_at_s: float = 0.0

    def wrote(self, tokens: int, now_s: float) -> None:
        self.rate = self.rate_now(now_s) + tokens / _AVERAGE_S
        self.rate_at_s = now_s

    def rate_now(self, now_s: float) -> float:
        return self.rate * math.exp((self.rate_at_s - now_s) / _AVERAGE_S)


@dataclass(frozen=True, slots=True)
class _Engine:
    model: str
    slots: int


class TrafficCount:
    """:ivar boot: made anew with every gateway."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """:param clock: seconds that only grow."""
        self.boot = secrets.token_hex(8)
        self._clock = clock
        self._known: dict[str, _Counters] = {}
        self._unknown: dict[str, _Counters] = {}
        self._engines: dict[str, _Engine] = {}

    def asked(self, model: str, *, known: bool) -> None:
        """A client asks for it here. :param known: the table lists it."""
        if counters := self._of(model, known=known):
            counters.requests += 1

    def missed(self, model: str, *, known: bool) -> None:
        """And is refused, for a reason that is not its own."""
        if counters := self._of(model, known=known):
            counters.misses += 1

    def answered(self, exchange: Exchange) -> None:
        """It has ended, one way or the other."""
        tokens = exchange.tokens
        if not tokens.prompt and not tokens.completion:
            return
        if counters := self._of(exchange.model, known=True):
            if not exchange.hop:
                counters.prompt_tokens += tokens.prompt
                counters.completion_tokens += tokens.completion
            if exchange.here:
                counters.wrote(tokens.completion, self._clock())

    def table_changed(self, table: RoutingTable) -> None:
        """What was unknown may be known now; what is not listed goes when there is no room."""
        self._note_engines(table)
        listed = [route.model for route in table.routes]
        for model in listed:
            if model in self._unknown and len(self._known) < _MAX_KNOWN:
                self._known[model] = self._unknown.pop(model)
        if len(self._known) >= _MAX_KNOWN:
            for model in self._known.keys() - set(listed):
                del self._known[model]

    def report(
        self, table: RoutingTable, in_flight: Mapping[str, int], unreachable: Iterable[str]
    ) -> TrafficReport:
        """All there is to say now, in an order that does not depend on when.

        :param in_flight: requests at each `choice.place`.
        """
        now_s = self._clock()
        listed = self._note_engines(table)
        busy: dict[str, tuple[int, int]] = {}
        for where, engine in [*self._engines.items()]:
            count = in_flight.get(where, 0)
            if count:
                running, waiting = busy.get(engine.model, (0, 0))
                busy[engine.model] = (running + count, waiting + max(0, count - engine.slots))
            elif where not in listed:
                del self._engines[where]
        for model in busy:
            self._of(model, known=True)
        models = [
            ModelTraffic(
                model,
                one.requests,
                one.misses,
                one.prompt_tokens,
                one.completion_tokens,
                *busy.get(model, (0, 0)),
                _rounded(one.rate_now(now_s)),
                known,
            )
            for counted, known in ((self._known, True), (self._unknown, False))
            for model, one in counted.items()
        ]
        models.sort(key=lambda one: one.model)
        return TrafficReport(self.boot, tuple(models), tuple(sorted(unreachable)[:MAX_NODES]))

    def _note_engines(self, table: RoutingTable) -> set[str]:
        """Those of this node that are listed now; one that takes nothing new is not, and ends what
        it has.
        """
        listed: set[str] = set()
        for route in table.routes:
            for target in route.targets:
                if target.socket:
                    where = place(route.model, target)
                    self._engines[where] = _Engine(route.model, target.slots)
                    listed.add(where)
        return listed

    def _of(self, model: str, *, known: bool) -> _Counters | None:
        if not model or len(model) > MAX_NAME_CHARACTERS:
            return None
        if model in self._known:
            return self._known[model]
        if model in self._unknown:
            if known and len(self._known) < _MAX_KNOWN:
                self._known[model] = self._unknown.pop(model)
                return self._known[model]
            return self._unknown[model]
        counted, most = (self._known, _MAX_KNOWN) if known else (self._unknown, MAX_UNKNOWN)
        if len(counted) >= most:
            return None
        return counted.setdefault(model, _Counters())


def _rounded(rate: float) -> float:
    """To two digits, so that a report changes only when the rate did; 0 below a tenth."""
    if rate < 0.1:
        return 0.0
    return float(f"{rate:.2g}")
