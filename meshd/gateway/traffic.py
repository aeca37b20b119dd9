"""What the gateway tells the brain of its requests: counters that only grow, and what is so now."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

MAX_MODELS = 256
# Of these, names that no node knows.
MAX_UNKNOWN = 32
MAX_NODES = 1024
MAX_NAME_CHARACTERS = 256
PATH = "/traffic"


@dataclass(frozen=True, slots=True)
class ModelTraffic:
    """One model, or a name that clients asked for. Counters are since the gateway's start.

    :ivar requests: that entered the mesh here, `misses` included; none that another gateway sent.
    :ivar misses: refused because nobody serves it, or nobody can be reached or has room.
    :ivar prompt_tokens: of those requests, as far as the answers say; `completion_tokens` likewise.
    :ivar in_flight: at this node's own engines now, those from other gateways included.
    :ivar waiting: of these, more than there are slots.
    :ivar tokens_s: that its own engines write now, all requests together; a moving average.
    :ivar known: the routing table lists it.
    """

    model: str
    requests: int = 0
    misses: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0
    waiting: int = 0
    tokens_s: float = 0.0
    known: bool = True


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """:ivar boot: another one when the gateway started anew and counts from 0 again.

    :ivar unreachable: ids of nodes that do not answer this gateway.
    """

    boot: str
    models: tuple[ModelTraffic, ...] = ()
    unreachable: tuple[str, ...] = ()


class TrafficError(ValueError):
    """A report that must not be believed; the message says why, in one line."""


def encode(report: TrafficReport) -> bytes:
    """The report as the JSON that `decode` reads."""
    return msgspec.json.encode(report)


def decode(data: bytes) -> TrafficReport:
    """:raises TrafficError: not a report, too large, or with figures that cannot be."""
    try:
        report = msgspec.json.decode(data, type=TrafficReport)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TrafficError(f"traffic: {error}".splitlines()[0]) from None
    if len(report.models) > MAX_MODELS or len(report.unreachable) > MAX_NODES:
        raise TrafficError("traffic: more models or nodes than there can be")
    names = (report.boot, *(one.model for one in report.models), *report.unreachable)
    if any(len(name) > MAX_NAME_CHARACTERS for name in names):
        raise TrafficError(f"traffic: a name has more than {MAX_NAME_CHARACTERS} characters")
    if len({one.model for one in report.models}) != len(report.models):
        raise TrafficError("traffic: a model is listed twice")
    for one in report.models:
        counts = (
            one.requests, one.misses, one.prompt_tokens, one.completion_tokens,
            one.in_flight, one.waiting,
        )  # fmt: skip
        if min(counts) < 0 or not math.isfinite(one.tokens_s) or one.tokens_s < 0:
            raise TrafficError(f"traffic: {one.model[:80]!r} has a figure below 0")
    return report
