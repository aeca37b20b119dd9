"""How long a request may wait: as long as the node allows, and no longer than its client waits."""

from __future__ import annotations

import math
from collections.abc import Mapping

# The first is what a person or another gateway writes, the others are what OpenAI's and
# Anthropic's SDKs made by Stainless send of their own timeout.
_HEADERS = ("X-Request-Timeout", "X-Stainless-Timeout", "X-Stainless-Read-Timeout")
# So that the client reads our answer before it gives up.
_MARGIN_SHARE = 0.05
_MARGIN_MOST_S = 1.0


def patience_s(headers: Mapping[str, str], wait_s: float) -> float:
    """Seconds that a request may wait in all, from its arrival.

    :param headers: of the request, case-insensitive. What is no number of seconds is passed over.
    :param wait_s: `routes.Front.wait_s`.
    """
    said = (_seconds(headers.get(name, "")) for name in _HEADERS)
    limits = [one - min(_MARGIN_MOST_S, one * _MARGIN_SHARE) for one in said if one is not None]
    return min([wait_s, *limits])


def _seconds(text: str) -> float | None:
    try:
        value = float(text[:32])
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
