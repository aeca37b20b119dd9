"""Work that all simulated nodes would do alike on the same bytes is done once.

Only pure functions are shared, and only equal bytes are made one: what a node believes is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from meshd.mesh import demand, envelope, intake, lattice, messages, view_cache
from meshd.mesh.record import NodeRecord
from meshd.mesh.record_codec import decode_record
from meshd.mesh.view import MeshView
from meshd.planner import explain, replicas
from meshd.planner.wishes import wanted

_KEPT = 1 << 16


@contextmanager
def shared() -> Iterator[Callable[[bytes, str], NodeRecord]]:
    """Within it, equal bytes are decoded, hashed and verified once. :yields: decoder of records."""
    equal: dict[bytes, bytes] = {}
    holds: dict[bytes, bool] = {}
    wishes: dict[Any, Any] = {}
    asked: dict[Any, Any] = {}
    absorb, entry_holds = intake.Intake.absorb, envelope.Gate.entry_holds

    def one_absorb(self: Any, raw: bytes, *rest: Any, **named: Any) -> Any:
        if len(equal) > _KEPT:
            equal.clear()
        return absorb(self, equal.setdefault(raw, raw), *rest, **named)

    def one_holds(self: Any, entry: Any, raw: bytes) -> bool:
        found = holds.get(raw)
        if found is None:
            if len(holds) > _KEPT:
                holds.clear()
            found = holds[raw] = entry_holds(self, entry, raw)
        return found

    def one_wanted(view: MeshView) -> Any:
        key = tuple((member.id, id(member.record.wishes)) for member in view.members)
        found = asked.get(key)
        if found is None:
            if len(asked) > 256:
                asked.clear()
            found = asked[key] = wanted(view)
        return found

    @lru_cache(_KEPT)
    def decode(payload: bytes, node: str) -> NodeRecord:
        record = decode_record(payload, node)
        return replace(record, wishes=wishes.setdefault(record.wishes, record.wishes))

    mark_of = lru_cache(_KEPT)(lattice.mark_of)
    patches: list[tuple[Any, str, Any]] = [
        (intake.Intake, "absorb", one_absorb),
        (envelope.Gate, "entry_holds", one_holds),
        (intake, "decode_signed", lru_cache(_KEPT)(messages.decode_signed)),
        (intake, "mark_of", mark_of),
        (demand, "decode", lru_cache(_KEPT)(demand.decode)),
        (lattice, "mark_of", mark_of),
        (view_cache, "mark_of", mark_of),
        (replicas, "wanted", one_wanted),
        (explain, "EXCLUDED_SHOWN", 0),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield decode
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
