"""How long a client itself waits for an answer, where it says so."""

from __future__ import annotations

import math
from collections.abc import Mapping

# The first is what a person or another gateway writes. The others are what OpenAI's and Anthropic's
# SDKs send of their own timeout, in seconds: for the whole request, or between two pieces.
HEADERS = ("X-Request-Timeout", "X-Stainless-Timeout", "X-Stainless-Read-Timeout")
# So that an answer still reaches a client that is about to give up.
_MARGIN_SHARE = 0.05
_MARGIN_MOST_S = 1.0


def client_limit_s(headers: Mapping[str, str]) -> float:
    """Seconds that it may be kept waiting, infinite where it does not say.

    :param headers: case-insensitive. What is no number of seconds above 0 is passed over.
    """
    limit_s = math.inf
    for name in HEADERS:
        said = headers.get(name)
        if said and (one := _seconds(said)) > 0:
            limit_s = min(limit_s, one - min(_MARGIN_MOST_S, one * _MARGIN_SHARE))
    return limit_s


def _seconds(text: str) -> float:
    try:
        seconds = float(text[:32])
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
