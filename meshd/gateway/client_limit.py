"""How long a client itself waits for an answer, where it says so."""

from __future__ import annotations

import math
from collections.abc import Mapping

# OpenAI's and Anthropic's SDKs send theirs with every request, in seconds.
HEADERS = ("X-Request-Timeout", "X-Stainless-Timeout")
# So that an answer still reaches a client that is about to give up.
_MARGIN_S = 1.0


def client_limit_s(headers: Mapping[str, str]) -> float:
    """Seconds that it may be kept waiting, infinite where it does not say."""
    limits = [limit_s for name in HEADERS if (limit_s := _seconds(headers.get(name, ""))) > 0]
    return max(0.0, min(limits, default=math.inf) - _MARGIN_S)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
