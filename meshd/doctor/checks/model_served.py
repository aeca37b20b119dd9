"""Every model of the configuration is served, or there is a reason that can be told."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity
from meshd.gateway.routes import ModelState
from meshd.planner.plan import Code

# Other checks say these better.
_SAID_ELSEWHERE = {Code.NO_MODEL, Code.NO_ENGINE, Code.GPU_PINNED_MISSING, Code.ROLE}


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.status is not None:
        yield from _as_running(evidence)
    for decision in evidence.decisions:
        blockers = [one for one in decision.blockers if one.code not in _SAID_ELSEWHERE]
        if not decision.served and blockers:
            yield Issue(
                f"model.waits:{decision.model}",
                Severity.WARNING,
                f"model {decision.model} would not be served",
                tuple(one.text for one in blockers),
                decision.next_step or "meshd plan",
            )


def _as_running(evidence: Evidence) -> Iterator[Issue]:
    assert evidence.status is not None
    unusable = {
        one.model
        for one in (evidence.observation.candidates if evidence.observation else ())
        if one.facts is None
    }
    for model in evidence.status.models:
        if model.state is ModelState.WAITING and model.name not in unusable:
            yield Issue(
                f"model.waits:{model.name}",
                Severity.WARNING,
                f"model {model.name} is not served",
                (model.detail, *model.reasons),
                "meshd plan",
            )
        elif model.state is ModelState.FAILED:
            yield Issue(
                f"model.failed:{model.name}",
                Severity.ERROR,
                f"the engine of model {model.name} does not stay up",
                (model.detail, f"{model.unit or 'engine'}: {model.restarts} restarts"),
                f"journalctl -u {model.unit} -b -n 50" if model.unit else "meshd status",
            )
