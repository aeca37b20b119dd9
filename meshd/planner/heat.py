"""How many replicas a model should have for its demand: with a wide gap between more and fewer.

Nothing is remembered: the number that runs now is the memory. One step at a time, and no number
is left by demand that would bring it back: `LOW_PER_REPLICA` is below half of `HIGH_PER_REPLICA`.
"""

from __future__ import annotations

HIGH_PER_REPLICA = 10.0
"""Requests a minute for each replica above which the mesh gains one."""

LOW_PER_REPLICA = 3.0
"""Requests a minute for each replica below which the mesh gives one back."""

WAKE = 0.5
"""Requests a minute that load a model whose minimum is 0: a request just now is 0.69."""

SLEEP = 0.02
"""Requests a minute below which such a model is given back: one request an hour."""


def replicas_for(rate: float, running: int, least: int, most: int | None, *, answers: bool) -> int:
    """How many there should be, where `running` load or serve now.

    :param rate: requests a minute, over the whole mesh.
    :param answers: one of them serves. Until then all requests wait for the load that is under
        way, and however many they are, a second load would only take memory and disk from it.
    """
    if running == 0:
        number = 1 if rate >= WAKE else 0
    elif answers and rate > HIGH_PER_REPLICA * running:
        number = running + 1
    elif running == 1:
        number = 0 if rate < SLEEP else 1
    elif rate < LOW_PER_REPLICA * running:
        number = running - 1
    else:
        number = running
    number = max(number, least)
    return number if most is None else min(number, max(most, least))
