"""Every model of the configuration is on disk, whole, and can be read."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.observation is None or evidence.config is None:
        return
    sources = {model.name: model.source for model in evidence.config.models}
    for candidate in evidence.observation.candidates:
        if candidate.facts is not None:
            continue
        folders = " ".join(evidence.config.node.model_dirs)
        yield Issue(
            f"model.unusable:{candidate.model}",
            Severity.ERROR,
            f"model {candidate.model} cannot be loaded",
            (f"source: {sources.get(candidate.model, '?')}", candidate.problem),
            f"ls -l {folders}   # put the file there, or correct source in {evidence.paths.config}",
        )
