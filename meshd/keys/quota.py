"""So much in such a time, as people write it: ``60/min``, ``1M/day``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PERIODS_S = {"s": 1.0, "min": 60.0, "h": 3600.0, "day": 86400.0}
LONGEST_S = max(_PERIODS_S.values())
_MULTIPLES = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_QUOTA = re.compile(r"([1-9][0-9]{0,11})([kMG]?)/(s|min|h|day)", re.ASCII)

FORM = "write a number and a time, such as 60/min, 500k/h or 1M/day"


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `limit` within any `period_s` seconds."""

    limit: int
    period_s: float

    def __str__(self) -> str:
        period = next((name for name, s in _PERIODS_S.items() if s == self.period_s), "")
        for name in ("G", "M", "k"):
            if self.limit % _MULTIPLES[name] == 0:
                return f"{self.limit // _MULTIPLES[name]}{name}/{period}"
        return f"{self.limit}/{period}"


def parse_quota(text: str) -> Quota:
    """:raises ValueError: not of the form; the message says which."""
    found = _QUOTA.fullmatch(text)
    if found is None:
        raise ValueError(FORM)
    count, multiple, period = found.groups()
    return Quota(int(count) * _MULTIPLES[multiple], _PERIODS_S[period])
