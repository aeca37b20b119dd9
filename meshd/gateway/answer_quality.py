"""How good an answer is: what a target gives, and whether that is what was asked for. Pure.

A whole model gives all; a shard of its experts what it was measured to give.
"""

from __future__ import annotations

from functools import lru_cache

from multidict import CIMultiDictProxy, MultiMapping

from meshd.gateway import headers
from meshd.gateway.routes import Route, Target
from meshd.quality import (
    Budget,
    parse,
    quality_of,
    rounded_down,
    rounded_up,
    shortfalls,
    worst,
)

EXACT = "exact"
SHARD = "shard"
"""The two words that it begins with, and metrics tell apart."""

_SAID_MOST = 200
_TOLD_MOST = 3
_UNMEASURED = ("its quality was not measured",)
_budget_of = lru_cache(maxsize=1024)(quality_of)


def asked_quality(told: MultiMapping[str]) -> Budget | None:
    """What a request's headers ask for, None where they leave it to the model's configuration.

    :raises ValueError: it is malformed; the message is one sentence.
    """
    lines = told.getall(headers.QUALITY, ())
    return parse(", ".join(lines)) if lines else None


def quality_said(target: Target) -> str:
    """For answers: ``exact``, or what a shard loses at worst, over all kinds of text."""
    if target.whole:
        return EXACT
    parts = [SHARD]
    if target.experts and target.experts_all:
        parts.append(f"experts={target.experts}/{target.experts_all}")
    if (least := worst(target.measured)) is not None:
        parts.append(f"top1={rounded_down(least.top1, 3):.3f}")
        parts.append(f"perplexity={rounded_up(least.perplexity_ratio, 3):.3f}")
        parts.append(f"kl={rounded_up(least.kl, 3):.3f}")
    return "; ".join(parts)


def said_elsewhere(heard: CIMultiDictProxy[str]) -> str:
    """What another node's gateway says of its answer: it knows its engine better than our table.
    "" where it says nothing of that kind.
    """
    said = heard.get(headers.QUALITY, "")[:_SAID_MOST]
    return said if word(said) and said.isprintable() else ""


def word(said: str) -> str:
    """``exact`` or ``shard``, "" for anything else."""
    start = said.partition(";")[0]
    return start if start in (EXACT, SHARD) else ""


def missed(target: Target, asked: Budget) -> tuple[str, ...]:
    """By how much the target misses what is asked for, one phrase each; nothing if it keeps it."""
    if target.whole:
        return ()
    return shortfalls(asked, target.measured) if target.measured else _UNMEASURED


def good_enough(route: Route, asked: Budget | None) -> tuple[Target, ...]:
    """Those of its targets that keep what the model's configuration bounds, and the request."""
    targets = route.targets
    if all(one.whole for one in targets):
        return targets
    bounds = [_budget_of(route.quality)]
    if asked is not None:
        bounds.append(asked)
    return tuple(one for one in targets if not any(missed(one, bound) for bound in bounds))


def shortcomings(targets: tuple[Target, ...], asked: Budget) -> str:
    """What there is instead, and by how much it falls short: of a few, the best first."""
    return ". ".join(
        f"{one.name or one.node} has a {quality_said(one)}: {'; '.join(missed(one, asked))}"
        for one in sorted(targets, key=_badness)[:_TOLD_MOST]
    )


def _badness(target: Target) -> float:
    least = worst(target.measured)
    return least.kl if least is not None else float("inf")
