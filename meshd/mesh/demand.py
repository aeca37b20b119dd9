"""Demand as decaying counters, one writer each: how often a model was asked for, and how lately.

A counter halves every half-life and gains one for each request. A node sends its own counters only
when the others, who let what they last heard decay, would compute something else; age is what
passed on the sender's and the receiver's own clocks, so no two clocks are ever compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import msgspec

SCHEMA = 1
FAST_HALF_LIFE_S = 60.0
SLOW_HALF_LIFE_S = 1800.0
MODELS_MAX = 64
NAME_MAX_BYTES = 128
PAYLOAD_MAX_BYTES = 8 * 1024
REQUESTS_MAX = 1e6
"""Of one origin: no node's counter is believed beyond it. Tokens: a thousand times as many."""

_TOKENS_MAX = REQUESTS_MAX * 1000
_TOKENS_PER_REQUEST = 1000.0
_DIFFERENCE_SHARE = 0.2
_DIFFERENCE_LEAST = 0.5
# In msgpack: four doubles of 9 bytes, their array, the name's length; and what is around all.
_ENTRY_BYTES = 4 * 9 + 1 + 3
_FRAME_BYTES = 16
# Below this nothing is left that would change any decision.
_FORGOTTEN = 0.02


class DemandError(ValueError):
    """A payload that is no demand; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Counters:
    """One origin's counters for one model, each decayed to the same moment.

    :ivar fast: requests, with `FAST_HALF_LIFE_S`; ``slow`` with the configured half-life.
    :ivar misses: of the slow ones, those that nobody could serve.
    :ivar tokens: generated, decaying as ``slow``.
    """

    fast: float = 0.0
    slow: float = 0.0
    misses: float = 0.0
    tokens: float = 0.0

    def after(self, elapsed_s: float, half_life_s: float) -> Counters:
        """The same counters, `elapsed_s` later."""
        fast = decay(elapsed_s, FAST_HALF_LIFE_S)
        slow = decay(elapsed_s, half_life_s)
        return Counters(self.fast * fast, self.slow * slow, self.misses * slow, self.tokens * slow)


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one model, over the whole mesh. Rates are those that would keep the counters as they are.

    :ivar burst: requests a minute, by the fast half-life; ``steady`` by the slow one.
    :ivar misses: requests a minute that nobody could serve; ``tokens`` a minute.
    """

    burst: float = 0.0
    steady: float = 0.0
    misses: float = 0.0
    tokens: float = 0.0

    @property
    def rate(self) -> float:
        """For placement: rises with a burst at once, falls no faster than the slow counter."""
        return max(self.burst, self.steady)


def decay(elapsed_s: float, half_life_s: float) -> float:
    """What is left of one. Time that ran backwards counts as none."""
    return float(2.0 ** (-max(0.0, elapsed_s) / half_life_s))


class DemandCounter:
    """What this node counted. Clocks are monotonic seconds that the caller passes in."""

    def __init__(self, half_life_s: float = SLOW_HALF_LIFE_S, *, now: float = 0.0) -> None:
        self._half_life_s = half_life_s
        self._now = now
        self._counters: dict[str, Counters] = {}
        self._told: dict[str, Counters] = {}

    def count(
        self,
        model: str,
        requests: float = 1,
        tokens: float = 0,
        misses: float = 0,
        *,
        now: float,
    ) -> None:
        """Add requests for a model. Misses are requests too and are counted in both.

        Of more than `MODELS_MAX` models the least asked for is forgotten, so that made-up names
        push out each other. Names that are too long, and numbers that are none, are passed over.
        """
        if not _is_name(model) or not all(_is_count(n) for n in (requests, tokens, misses)):
            return
        self._advance(now)
        old = self._counters.get(model, Counters())
        self._counters[model] = _bounded(
            Counters(
                old.fast + requests, old.slow + requests, old.misses + misses, old.tokens + tokens
            )
        )
        if len(self._counters) > MODELS_MAX:
            others = (name for name in self._counters if name != model)
            del self._counters[min(others, key=lambda name: (self._counters[name].slow, name))]

    def counters(self, now: float) -> dict[str, Counters]:
        self._advance(now)
        return dict(self._counters)

    def due(self, now: float) -> bytes | None:
        """What to publish, or None while the others' own reckoning is near enough.

        What it returns counts as published.
        """
        self._advance(now)
        names = self._counters.keys() | self._told.keys()
        nothing = Counters()
        if not any(
            _differs(self._counters.get(name, nothing), self._told.get(name, nothing))
            for name in names
        ):
            return None
        self._told = dict(self._counters)
        return encode(self._counters)

    def _advance(self, now: float) -> None:
        elapsed_s = now - self._now
        if elapsed_s <= 0:
            return
        self._now = now
        self._counters = _aged(self._counters, elapsed_s, self._half_life_s)
        self._told = _aged(self._told, elapsed_s, self._half_life_s)


def encode(counters: dict[str, Counters]) -> bytes:
    """Msgpack: ``[schema, {model: [fast, slow, misses, tokens]}]``, the most asked for first."""
    kept = sorted(counters.items(), key=lambda item: (-item[1].slow, item[0]))[:MODELS_MAX]
    room = PAYLOAD_MAX_BYTES - _FRAME_BYTES
    models = {}
    for name, one in kept:
        room -= len(name.encode()) + _ENTRY_BYTES
        if room < 0:
            break
        models[name] = (one.fast, one.slow, one.misses, one.tokens)
    return _ENCODER.encode((SCHEMA, models))


def decode(data: bytes) -> dict[str, Counters]:
    """Read what another node counted. Absurd values are bounded, anything malformed is refused.

    :raises DemandError: too long, no msgpack of this form, a number that is negative or none.
    """
    if len(data) > PAYLOAD_MAX_BYTES:
        raise DemandError(f"demand of {len(data)} bytes, at most {PAYLOAD_MAX_BYTES}")
    try:
        schema, models = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DemandError(f"demand is malformed: {error}") from error
    if schema != SCHEMA:
        raise DemandError(f"demand has schema {schema}, this is {SCHEMA}")
    result = {}
    for name, numbers in models.items():
        if not _is_name(name):
            raise DemandError("demand names a model that cannot be one")
        if not all(map(math.isfinite, numbers)):
            raise DemandError(f"demand for {name} is no number")
        result[name] = _bounded(Counters(*numbers))
    return result


def total(
    entries: Iterable[tuple[bytes, float]], half_life_s: float = SLOW_HALF_LIFE_S
) -> dict[str, Demand]:
    """Sum over all origins: what each last sent, decayed by its age.

    :param entries: payload and age in seconds; payloads that are malformed count as nothing.
    """
    parts: dict[str, list[Counters]] = {}
    for payload, age_s in entries:
        try:
            counters = _decoded(payload)
        except DemandError:
            continue
        for name, one in counters.items():
            parts.setdefault(name, []).append(one.after(age_s, half_life_s))
    fast, slow = _per_minute(FAST_HALF_LIFE_S), _per_minute(half_life_s)
    return {
        # fsum: the same sum in whatever order the entries came.
        name: Demand(
            burst=fast * math.fsum(one.fast for one in them),
            steady=slow * math.fsum(one.slow for one in them),
            misses=slow * math.fsum(one.misses for one in them),
            tokens=slow * math.fsum(one.tokens for one in them),
        )
        for name, them in sorted(parts.items())
    }


def rates(demand: dict[str, Demand]) -> dict[str, float]:
    """Requests a minute by model, for `planner.replicas.place_replicas`."""
    return {model: one.rate for model, one in demand.items()}


# The same payloads are summed again and again while nobody sends newer ones.
_decoded = lru_cache(maxsize=2048)(decode)

_Count = Annotated[float, msgspec.Meta(ge=0)]
_DECODER = msgspec.msgpack.Decoder(
    tuple[
        int,
        Annotated[
            dict[str, tuple[_Count, _Count, _Count, _Count]], msgspec.Meta(max_length=MODELS_MAX)
        ],
    ]
)
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def _per_minute(half_life_s: float) -> float:
    """A counter of half-life h that gains r a second comes to rest at ``r h / ln 2``."""
    return 60.0 * math.log(2.0) / half_life_s


def _aged(
    counters: dict[str, Counters], elapsed_s: float, half_life_s: float
) -> dict[str, Counters]:
    later = ((name, one.after(elapsed_s, half_life_s)) for name, one in counters.items())
    return {name: one for name, one in later if one.slow >= _FORGOTTEN or one.fast >= _FORGOTTEN}


def _bounded(counters: Counters) -> Counters:
    return Counters(
        min(counters.fast, REQUESTS_MAX),
        min(counters.slow, REQUESTS_MAX),
        min(counters.misses, counters.slow, REQUESTS_MAX),
        min(counters.tokens, _TOKENS_MAX),
    )


def _differs(mine: Counters, told: Counters) -> bool:
    return (
        _apart(mine.fast, told.fast)
        or _apart(mine.slow, told.slow)
        or _apart(mine.misses, told.misses)
        or _apart(mine.tokens, told.tokens, _TOKENS_PER_REQUEST)
    )


def _apart(mine: float, told: float, unit: float = 1.0) -> bool:
    return abs(mine - told) > max(_DIFFERENCE_SHARE * told, _DIFFERENCE_LEAST * unit)


def _is_name(name: str) -> bool:
    return 0 < len(name.encode("utf-8", "surrogatepass")) <= NAME_MAX_BYTES and name.isprintable()


def _is_count(number: float) -> bool:
    return math.isfinite(number) and number >= 0
