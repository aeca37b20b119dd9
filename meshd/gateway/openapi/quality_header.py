"""The schema of a request's `X-Mesh-Quality`: just what `meshd.quality.parse` takes, but for spaces
and for numbers written in other ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

from meshd.gateway.openapi.requests import Schema

_FRACTION = r"(\.[0-9]{1,6})?"
_NUMBERS: Mapping[str, str] = {
    "min_top1": rf"(0{_FRACTION}|1)",
    "max_perplexity_ratio": rf"([1-9][0-9]?{_FRACTION}|100)",
    "max_kl": rf"([0-9]{{1,2}}{_FRACTION}|100)",
}


def _pattern() -> str:
    """Each bound at most once, in any order."""
    ways = (
        ", ?".join(f"{name}={_NUMBERS[name]}" for name in names)
        for count in range(1, len(_NUMBERS) + 1)
        for names in permutations(_NUMBERS, count)
    )
    return f"^(exact|{'|'.join(ways)})$"


SCHEMA: Schema = {
    "type": "string",
    "pattern": _pattern(),
    "examples": ["exact", "min_top1=0.97", "min_top1=0.95, max_perplexity_ratio=1.05"],
}
