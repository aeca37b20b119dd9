"""What expert shards need is there, for models of which the configuration allows them."""

from __future__ import annotations

from collections.abc import Iterator

from meshd.config.settings import ModelSettings
from meshd.doctor.evidence import Evidence
from meshd.doctor.issue import Issue, Severity
from meshd.mesh.record import ShardStage
from meshd.models.facts import GgufFacts
from meshd.shard_line import ShardStatus

GIB = 1024**3

_TOOLS = {"llama-imatrix": "count experts", "llama-perplexity": "measure what a shard loses"}


def check(evidence: Evidence) -> Iterator[Issue]:
    if evidence.observation is None or evidence.config is None:
        return
    facts = {one.model: one.facts for one in evidence.observation.candidates}
    for model in evidence.config.models:
        if model.quality.exact:
            continue
        found = facts.get(model.name)
        if found is None:
            continue  # what is wrong with its file is another check's
        if not found.moe or found.undividable:
            yield _no_shards(model, found)
            continue
        yield from _tools(model.name, evidence)
        yield from _room(model.name, found, evidence)
        yield from _texts(model, evidence)
        yield from _refused(model.name, evidence)


def _no_shards(model: ModelSettings, facts: GgufFacts) -> Issue:
    why = facts.undividable or "it is no mixture of experts"
    return Issue(
        f"shard.impossible:{model.name}",
        Severity.NOTE,
        f"the bounds of {model.name}'s quality have no effect: it is served whole or not at all",
        (f"quality: {model.quality}", f"{facts.architecture}: {why}"),
        f"delete models[].quality of {model.name}, or leave it",
    )


def _tools(model: str, evidence: Evidence) -> Iterator[Issue]:
    engine = evidence.observation.engine if evidence.observation else None
    if engine is None:
        return
    missing = [name for name in _TOOLS if engine.binary(name) is None]
    if missing:
        packaged = engine.origin == "debian"
        yield Issue(
            f"shard.no-tools:{model}",
            Severity.WARNING,
            f"no expert shard of {model} can be made here: the engine lacks programs",
            tuple(f"{name}: not there to {_TOOLS[name]}" for name in missing),
            "apt install llama.cpp-tools-extra" if packaged else "meshd engine install",
        )


def _room(model: str, facts: GgufFacts, evidence: Evidence) -> Iterator[Issue]:
    disk = next((one for one in evidence.disks if one.used_for == "state"), None)
    if disk is None or disk.free_bytes >= facts.file_bytes or _has_one(model, evidence):
        return
    yield Issue(
        f"shard.no-room:{model}",
        Severity.WARNING,
        f"there may be no room on disk for an expert shard of {model}",
        (
            f"{disk.path}: {disk.free_bytes / GIB:.2f} GiB free",
            f"a shard may be nearly as large as the model: {facts.file_bytes / GIB:.2f} GiB",
        ),
        f"du -xh --max-depth=2 {disk.path} | sort -h | tail   # and delete what is not needed",
    )


def _has_one(model: str, evidence: Evidence) -> bool:
    return any(one.stage == ShardStage.READY for one in _own(model, evidence))


def _texts(model: ModelSettings, evidence: Evidence) -> Iterator[Issue]:
    problems = dict(evidence.unreadable)
    for kind, path in model.calibration:
        if path in problems:
            yield Issue(
                f"shard.no-text:{model.name}:{kind}",
                Severity.ERROR,
                f"no expert shard of {model.name} can be measured: its text {kind} is missing",
                (f"{path}: {problems[path]}",),
                f"ls -l {path}   # put it there for all to read, or correct models[].calibration",
            )


def _refused(model: str, evidence: Evidence) -> Iterator[Issue]:
    for one in _own(model, evidence):
        if one.stage == ShardStage.REFUSED:
            yield Issue(
                f"shard.refused:{model}",
                Severity.WARNING,
                f"the expert shard of {model} that this node has room for is not served",
                (one.detail or "it loses more than is allowed",),
                "meshd plan --explain   # then free memory, or loosen models[].quality",
            )


def _own(model: str, evidence: Evidence) -> tuple[ShardStatus, ...]:
    status = evidence.status.model(model) if evidence.status else None
    return tuple(one for one in status.shards if one.me) if status else ()
