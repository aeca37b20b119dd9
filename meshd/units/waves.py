"""Which units wait for which when several change at once. Pure.

A llama-server of a split ends by itself when what it stands on goes, and starts only when that is
there: its guard, which is started before it and stopped after it, and rpc-servers likewise.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshd.units.spec import EngineKind

_LAST = f"mesh-{EngineKind.LLAMA}@"


def upward(units: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Groups in the order in which to start them; within one all at once.

    >>> upward(["mesh-llama@a.service", "mesh-rpc@b.service", "mesh-guard@a.service"])
    (('mesh-rpc@b.service', 'mesh-guard@a.service'), ('mesh-llama@a.service',))
    """
    listed = tuple(units)
    first = tuple(unit for unit in listed if not unit.startswith(_LAST))
    last = tuple(unit for unit in listed if unit.startswith(_LAST))
    return tuple(group for group in (first, last) if group)


def downward(units: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Groups in the order in which to stop them."""
    return tuple(reversed(upward(units)))
