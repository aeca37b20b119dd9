"""Times as people write them: ``30s``, ``5min``."""

from __future__ import annotations

import re

_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,7})(s|min|h|d)")


def parse_duration(text: str) -> float:
    """Seconds of a time such as ``5min``.

    :raises ValueError: not a time.
    """
    found = _DURATION.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a time")
    return float(int(found.group(1)) * _UNITS_S[found.group(2)])


def format_duration(time_s: float) -> str:
    """Write whole seconds in the largest unit that shows them exactly: ``90s``, ``2h``."""
    whole_s = int(time_s)
    for unit in ("d", "h", "min"):
        if whole_s and whole_s % _UNITS_S[unit] == 0:
            return f"{whole_s // _UNITS_S[unit]}{unit}"
    return f"{whole_s}s"
