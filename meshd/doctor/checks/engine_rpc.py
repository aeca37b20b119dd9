"""The engine can be part of a split: its RPC backend loads."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity


def check(evidence: Evidence) -> Iterator[Issue]:
    engine = evidence.observation.engine if evidence.observation else None
    if engine is not None and "RPC" not in engine.backends:
        packaged = engine.origin == "debian"
        yield Issue(
            "engine.no-rpc",
            Severity.WARNING,
            "the engine has no RPC backend: this node serves alone, never with others",
            (f"backends of {engine.root}: {', '.join(engine.backends) or 'none'}",),
            "apt install libggml0-backend-rpc" if packaged else "meshd engine install",
        )
