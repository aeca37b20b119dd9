"""What a gateway tells the next one of a request that it sends on, so that it waits there as it
would have waited here: in its place in the line, and no longer than its client does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from meshd.keys.key import LEAST_PRIORITY, MOST_PRIORITY, named_well

WAITED = "X-Mesh-Waited"
"""Seconds since the request came into the mesh."""
PATIENCE = "X-Mesh-Patience"
"""Seconds that it may still wait."""
BEGUN = "X-Mesh-Begun"
"""Its client has a part of the answer, so it goes before those that have nothing yet."""
KEY = "X-Mesh-Key"
"""Name of its client's API key: keys take turns wherever they wait."""
PRIORITY = "X-Mesh-Priority"
"""Of that key."""

_PRIORITY = re.compile(r"-?[0-9]{1,3}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Onward:
    """:ivar waited_s: since it came into the mesh. :ivar patience_s: that it may still wait.

    :ivar begun: its client has a part of the answer.
    :ivar key: name of its client's API key, "" without one. :ivar priority: of that key.
    """

    waited_s: float = 0.0
    patience_s: float = math.inf
    begun: bool = False
    key: str = ""
    priority: int = 0

    def headers(self) -> dict[str, str]:
        told = {WAITED: f"{self.waited_s:.3f}"}
        if math.isfinite(self.patience_s):
            told[PATIENCE] = f"{max(0.0, self.patience_s):.3f}"
        if self.begun:
            told[BEGUN] = "1"
        if self.key:
            told[KEY] = self.key
        if self.priority:
            told[PRIORITY] = str(self.priority)
        return told


def read_onward(headers: Mapping[str, str]) -> Onward:
    """What another gateway said; what it left out, or is no number, is as if it knew nothing."""
    key = headers.get(KEY, "")
    return Onward(
        _seconds(headers.get(WAITED, ""), 0.0),
        _seconds(headers.get(PATIENCE, ""), math.inf),
        BEGUN in headers,
        key if named_well(key) else "",
        _priority(headers.get(PRIORITY, "")),
    )


def _priority(text: str) -> int:
    said = int(text) if _PRIORITY.fullmatch(text) else 0
    return max(LEAST_PRIORITY, min(MOST_PRIORITY, said))


def _seconds(text: str, otherwise: float) -> float:
    try:
        seconds = float(text[:32])
    except ValueError:
        return otherwise
    return seconds if math.isfinite(seconds) and seconds >= 0 else otherwise
