"""There is an engine, it runs, and all of its tools are there."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity
from meshd.engine.locate import REQUIRED


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.observation is None:
        return
    engine = evidence.observation.engine
    if engine is None:
        yield Issue(
            "engine.missing",
            Severity.ERROR,
            "there is no llama.cpp that can be run",
            (evidence.observation.engine_problem,),
            "meshd engine install",
        )
        return
    missing = tuple(name for name in REQUIRED if engine.binary(name) is None)
    if missing:
        yield Issue(
            "engine.incomplete",
            Severity.WARNING,
            "the engine lacks some of its programs",
            tuple(f"{name}: not found below {engine.root}" for name in missing),
            "meshd engine install",
        )
