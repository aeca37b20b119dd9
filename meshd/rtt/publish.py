"""What of our windows the others are told, and when it is worth telling anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from meshd.mesh.record import RttRecord
from meshd.rtt.window import RttWindow, differs, farther

LIMIT = 32


def revise(
    told: tuple[RttRecord, ...],
    windows: Mapping[str, RttWindow],
    needed: Collection[str],
    limit: int = LIMIT,
) -> tuple[RttRecord, ...]:
    """The records to publish: needed peers first, then the nearest.

    A record stays as it was told until a figure differs by the rule of `window.differs`; a peer
    takes another's place only when it is nearer by more than that. Equal to `told` when there is
    nothing to say.
    """
    before = {record.peer: record for record in told}
    now = [_record(before.get(peer), peer, window) for peer, window in windows.items()]

    def rank(record: RttRecord) -> tuple[bool, float, str]:
        far = record.median_ms if record.peer in before else farther(record.median_ms)
        return record.peer not in needed, far, record.peer

    chosen = sorted(now, key=rank)[:limit]
    return tuple(sorted(chosen, key=lambda one: (one.peer not in needed, one.median_ms, one.peer)))


def worth(old: RttRecord, new: RttRecord) -> bool:
    """Whether the others should hear of the new figures."""
    return (
        differs(old.min_ms, new.min_ms)
        or differs(old.median_ms, new.median_ms)
        or differs(old.p95_ms, new.p95_ms)
    )


def _record(old: RttRecord | None, peer: str, window: RttWindow) -> RttRecord:
    new = RttRecord(
        peer, round(window.min_ms, 2), round(window.median_ms, 2), round(window.p95_ms, 2)
    )
    return new if old is None or worth(old, new) else old
